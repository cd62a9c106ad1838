"""A real OCI registry on loopback, CNCF distribution, for anybody or for who has a token."""

from __future__ import annotations

import base64
import datetime
import hashlib
import http.server
import json
import socket
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

import go_binaries

USER, PASSWORD = "reader", "pass-0123456789"
BASIC = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
GGUF_TYPE = "application/vnd.docker.ai.gguf.v3"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_WAIT_SECONDS = 20.0


@dataclass
class OciRegistry:
    """Where it listens, and who signs its tokens if it wants some."""

    host: str
    authority: TokenAuthority | None = None

    def push(
        self, repository: str, tag: str, files: Mapping[str, bytes], media_type: str = GGUF_TYPE, named: bool = True
    ) -> str:
        """Pushes an artifact with a layer for each file, and returns its manifest's digest."""
        layers = [
            self._blob(repository, data, media_type)
            | ({"annotations": {"org.opencontainers.image.title": name}} if named else {})
            for name, data in files.items()
        ]
        config = self._blob(repository, b"{}", "application/vnd.oci.empty.v1+json")
        return self.put_manifest(
            repository, tag, {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers}
        )

    def put_manifest(self, repository: str, tag: str, manifest: Mapping[str, object]) -> str:
        body = json.dumps(manifest).encode()
        url = f"http://{self.host}/v2/{repository}/manifests/{tag}"
        headers = {"Content-Type": str(manifest["mediaType"]), **self._authorization(repository)}
        httpx.put(url, content=body, headers=headers, trust_env=False).raise_for_status()
        return f"sha256:{hashlib.sha256(body).hexdigest()}"

    def _blob(self, repository: str, data: bytes, media_type: str) -> dict[str, object]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        headers = self._authorization(repository)
        begun = httpx.post(f"http://{self.host}/v2/{repository}/blobs/uploads/", headers=headers, trust_env=False)
        begun.raise_for_status()
        url = httpx.URL(begun.headers["Location"]).copy_merge_params({"digest": digest})
        httpx.put(url, content=data, headers=headers, trust_env=False, timeout=60).raise_for_status()
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def _authorization(self, repository: str) -> dict[str, str]:
        if self.authority is not None:
            return {"Authorization": f"Bearer {self.authority.token(repository, ['pull', 'push'], 60)}"}
        return {}


@dataclass
class TokenAuthority:
    """Gives out tokens as an authorization server of registries does (distribution specification, token authentication).

    `seconds` is how long the next ones are good for; `scopes` are those that were asked for, with the Authorization header.
    """

    seconds: int = 60
    scopes: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""

    def __post_init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tokens")])
        now = datetime.datetime.now(datetime.UTC)
        self._certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(1)
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def certificate(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def token(self, repository: str, actions: Sequence[str], seconds: int) -> str:
        now = int(time.time())
        chain = [base64.b64encode(self._certificate.public_bytes(serialization.Encoding.DER)).decode()]
        claims = {
            "iss": "tests",
            "sub": USER,
            "aud": "registry",
            "iat": now,
            # The registry forgives a minute of clocks that differ.
            "nbf": now - 60,
            "exp": now - 60 + seconds,
            "jti": str(time.monotonic_ns()),
            "access": [{"type": "repository", "name": repository, "actions": list(actions)}],
        }
        signed = b".".join(
            _encoded(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "ES256", "x5c": chain}, claims)
        )
        r, s = decode_dss_signature(self._key.sign(signed, ec.ECDSA(hashes.SHA256())))
        return (signed + b"." + _encoded(r.to_bytes(32, "big") + s.to_bytes(32, "big"))).decode()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Answers on loopback. Only the user of this module gets a token."""
        authority = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
                scope, header = query.get("scope", [""])[0], self.headers.get("Authorization")
                authority.scopes.append((scope, header))
                if header != f"Basic {BASIC}":
                    self.send_error(401)
                    return
                _, repository, actions = scope.split(":")
                body = json.dumps({"token": authority.token(repository, actions.split(","), authority.seconds)}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_address[1]}/token"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


@contextmanager
def running_registry(folder: Path, with_tokens: bool = False) -> Iterator[OciRegistry]:
    """Runs a registry that keeps its blobs in a folder."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"127.0.0.1:{listener.getsockname()[1]}"
    config: dict[str, object] = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "blobs")}},
        "http": {"addr": host},
    }
    with ExitStack() as running:
        authority = None
        if with_tokens:
            authority = TokenAuthority()
            running.enter_context(authority.running())
            (folder / "tokens.pem").write_bytes(authority.certificate)
            bundle = str(folder / "tokens.pem")
            config["auth"] = {
                "token": {"realm": authority.url, "service": "registry", "issuer": "tests", "rootcertbundle": bundle}
            }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        command = [str(go_binaries.ensure("registry")), "serve", str(folder / "config.yaml")]
        with (folder / "registry.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait_for(host, process, folder / "registry.log")
            yield OciRegistry(host, authority)
        finally:
            process.terminate()
            process.wait(_WAIT_SECONDS)


def _wait_for(host: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            httpx.get(f"http://{host}/v2/", trust_env=False)
        except httpx.TransportError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the registry did not start:\n{log.read_text()}") from None
            time.sleep(0.05)
        else:
            return


def _encoded(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
