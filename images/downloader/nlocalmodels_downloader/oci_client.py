"""oci:// sources: a manifest says which blob is the model, and the bytes come through the HTTP client like all others."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from nlocalmodels_downloader.answers import failure
from nlocalmodels_downloader.clients import RemoteFile
from nlocalmodels_downloader.errors import ConfigError, CorruptError, DeniedError, RefusedError
from nlocalmodels_downloader.http_client import HttpClient
from nlocalmodels_downloader.oci_auth import Challenge, basic_credentials, parse_challenge, token_of
from nlocalmodels_downloader.oci_manifest import MANIFEST_TYPES, Layer, model_layer
from nlocalmodels_downloader.sources import Artifact, parse_artifact, parse_source

# The specification lets registries refuse manifests above 4 MiB.
_MAX_MANIFEST_BYTES = 4 * 1024 * 1024
_MAX_TOKEN_BYTES = 256 * 1024
_HOSTS = {"docker.io": "registry-1.docker.io"}


class OciClient:
    """Reads artifacts of registries (OCI distribution specification 1.1).

    Args:
        http: makes a client that sends an Authorization header, if any, to one origin only, never to where that redirects.
        docker_config: Docker's config.json with the registries' users; None asks as anybody.
        plain_http: registries, as host or host:port, that speak HTTP.
    """

    def __init__(
        self, http: Callable[[str | None, str | None], HttpClient], docker_config: Path | None, plain_http: frozenset[str]
    ) -> None:
        self._make_http = http
        self._anonymous = http(None, None)
        self._docker_config = docker_config
        self._plain_http = plain_http
        self._lock = threading.Lock()
        # By registry and repository, since that is what a token is good for.
        self._clients: dict[tuple[str, str], HttpClient] = {}

    def probe(self, url: str) -> RemoteFile:
        """Reads the manifest, and asks for the first byte of the model. Its digest is in `linked_sha256`.

        Raises:
            CorruptError: the manifest is not what its digest says, or the blob has another size than it says.
            DeniedError, GoneError, RefusedError, TransientError: as the HTTP client, or as `model_layer` does.
        """
        artifact = parse_artifact(url)
        layer, digest = self._layer(artifact)
        remote = self._client(artifact).probe(f"{self._base(artifact)}/blobs/sha256:{layer.sha256}")
        if remote.size_bytes not in (None, layer.size_bytes):
            raise CorruptError(
                f"{url}: the registry has {remote.size_bytes} bytes of a blob that the manifest says has {layer.size_bytes}; "
                "push the artifact again."
            )
        return replace(remote, origin_url=url, size_bytes=layer.size_bytes, linked_sha256=layer.sha256, commit=digest)

    def wait_until_welcome(self, remote: RemoteFile, is_over: Callable[[], bool]) -> None:
        self._client(parse_artifact(remote.origin_url)).wait_until_welcome(remote, is_over)

    def refresh(self, remote: RemoteFile) -> RemoteFile:
        """Gets a new token, and the blob's address anew."""
        return replace(remote, url=self.probe(remote.origin_url).url)

    def stream(
        self, remote: RemoteFile, start: int, end: int, check_etag: bool = False
    ) -> AbstractContextManager[Iterator[memoryview]]:
        return self._client(parse_artifact(remote.origin_url)).stream(remote, start, end, check_etag)

    def abort(self) -> None:
        with self._lock:
            clients = [self._anonymous, *self._clients.values()]
        for client in clients:
            client.abort()

    def _client(self, artifact: Artifact) -> HttpClient:
        with self._lock:
            return self._clients.get((artifact.registry, artifact.repository), self._anonymous)

    def _base(self, artifact: Artifact) -> str:
        return f"{self._origin(artifact)}/v2/{artifact.repository}"

    def _origin(self, artifact: Artifact) -> str:
        scheme = "http" if artifact.registry in self._plain_http else "https"
        return f"{scheme}://{_HOSTS.get(artifact.registry, artifact.registry)}"

    def _layer(self, artifact: Artifact) -> tuple[Layer, str]:
        """Returns the model's layer and the digest of the manifest that says so."""
        url = f"{self._base(artifact)}/manifests/{artifact.digest or artifact.tag}"
        accept = {"Accept": ", ".join(MANIFEST_TYPES)}
        status, headers, body = self._client(artifact).read(url, accept, _MAX_MANIFEST_BYTES)
        if status == 401:
            self._sign_in(artifact, headers.get("WWW-Authenticate", ""))
            status, headers, body = self._client(artifact).read(url, accept, _MAX_MANIFEST_BYTES)
        if status != 200:
            raise failure(status, headers, url)
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if artifact.digest is not None and digest != artifact.digest:
            raise CorruptError(f"{artifact}: the registry sent a manifest of digest {digest}; look after the registry.")
        return model_layer(body, str(artifact), artifact.file), digest

    def _sign_in(self, artifact: Artifact, header: str) -> None:
        """Gives the artifact's repository a client that the registry's challenge is satisfied with."""
        challenge = parse_challenge(header)
        if challenge is None:
            raise RefusedError(f"{artifact}: the registry wants another sign-in than Basic or Bearer; use another source.")
        basic = basic_credentials(self._docker_config, _HOSTS.get(artifact.registry, artifact.registry))
        if challenge.scheme == "bearer":
            authorization = f"Bearer {self._token(artifact, challenge, basic)}"
        elif basic is not None:
            authorization = f"Basic {basic}"
        else:
            raise DeniedError(f"{artifact}: the registry wants a user; name it in the config.json that DOCKER_CONFIG leads to.")
        client = self._make_http(authorization, self._origin(artifact))
        with self._lock:
            self._clients[artifact.registry, artifact.repository] = client

    def _token(self, artifact: Artifact, challenge: Challenge, basic: str | None) -> str:
        if not _is_address(challenge.realm) or not (
            challenge.realm.startswith("https://") or artifact.registry in self._plain_http
        ):
            raise RefusedError(f"{artifact}: the registry sends its clients to sign in without TLS; use another source.")
        url = challenge.token_url(f"repository:{artifact.repository}:pull")
        headers = {"Authorization": f"Basic {basic}"} if basic else {}
        status, answered, body = self._anonymous.read(url, headers, _MAX_TOKEN_BYTES)
        if status != 200:
            raise failure(status, answered, url)
        token = token_of(body)
        if token is None:
            raise DeniedError(f"{artifact}: the registry's sign-in gave no token; check the user in config.json.")
        return token


def _is_address(text: str) -> bool:
    try:
        source = parse_source(text)
    except ConfigError:
        return False
    return source.text.startswith(("https://", "http://"))
