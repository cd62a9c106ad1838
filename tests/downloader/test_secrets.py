"""Signed addresses over TLS that run out, and secrets that no output and no file on the volume may tell, whatever fails."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trustme
import yaml

from support import killing
from support.downloads import HUB_COMMIT, MIB, sha256
from support.faulty_downloader import Faults
from support.gguf_files import bulk_gguf
from support.killing import Ended, Runner
from support.model_source import Behaviour, ModelSource, Request

TOKEN = "hf_TOKENSECRET"
PAGE = b"<!DOCTYPE html><title>Request has expired HTMLSECRET</title>"
# Every secret that a test uses has this in it.
MARK = "SECRET"
HUB_PATH = f"/org/repo/resolve/{HUB_COMMIT}/m.gguf"
DATA = bulk_gguf(6 * MIB + 11, seed=9)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with killing.running(tmp_path_factory.mktemp("runs")) as running:
        yield running


@pytest.fixture(scope="module")
def tls() -> tuple[trustme.CA, ssl.SSLContext]:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return authority, context


@pytest.fixture
def hub(tls: tuple[trustme.CA, ssl.SSLContext]) -> Iterator[ModelSource]:
    with ModelSource(tls[1]).running() as running:
        yield running


@pytest.fixture
def cdn(tls: tuple[trustme.CA, ssl.SSLContext]) -> Iterator[ModelSource]:
    """Another port is another origin."""
    with ModelSource(tls[1]).running() as running:
        yield running


@dataclass
class Place:
    """A volume, and every place where a command says something."""

    runner: Runner
    folder: Path
    environ: dict[str, str]

    @property
    def root(self) -> Path:
        return self.folder / "models"

    def declare(self, **model: object) -> Path:
        config = self.folder / "downloads.yaml"
        models = [{"id": "m", "file": "m.gguf", "sha256": sha256(DATA), **model}]
        config.write_text(yaml.safe_dump({"modelPath": str(self.root), "models": models}))
        return config

    def run(self, config: Path, command: str = "sync", **environ: str) -> Ended:
        """Runs a command and makes sure that no secret is told."""
        metrics = ["--metrics-file", str(self.folder / "metrics")] if command == "sync" else []
        (self.folder / "termination").write_text("")
        arguments = ["--json", command, "--config", str(config), *metrics]
        ended = self.runner.run(arguments, Faults(str(self.root)), {**self.environ, **environ})
        self._check(ended.output, config)
        return ended

    def _check(self, output: str, config: Path) -> None:
        assert output, "something must have been said"
        assert "Traceback" not in output, output
        assert MARK not in output
        for path in self.folder.rglob("*"):
            assert MARK not in str(path)
            if path.is_file() and path != config:
                assert MARK.encode() not in path.read_bytes(), path


@pytest.fixture
def place(
    runner: Runner, tls: tuple[trustme.CA, ssl.SSLContext], memory_folder: Path, hub: ModelSource, tmp_path: Path
) -> Place:
    bundle = tmp_path / "ca.pem"
    tls[0].cert_pem.write_to_path(str(bundle))
    environ = {
        "HF_TOKEN": TOKEN,
        "HF_ENDPOINT": hub.url,
        "REQUESTS_CA_BUNDLE": str(bundle),
        "TERMINATION_MESSAGE_PATH": str(memory_folder / "termination"),
        "DOWNLOAD_ATTEMPTS": "2",
        "DOWNLOAD_CONNECTIONS": "2",
        "DOWNLOAD_PROGRESS_SECONDS": "0.1",
    }
    return Place(runner, memory_folder, environ)


class Signing:
    """A hub that leads to signed addresses, of which each is good until it is told to have run out."""

    def __init__(self, hub: ModelSource, cdn: ModelSource) -> None:
        self._cdn = cdn
        self.num_resolved = 0
        self.refused: list[Request] = []
        self._all_refused = threading.Barrier(2)
        hub.behave = self._resolve
        cdn.behave = self._answer

    def _resolve(self, request: Request) -> Behaviour:
        self.num_resolved += 1
        location = f"{self._cdn.url}/blob-{self.num_resolved}?X-Signature=QUERYSECRET{self.num_resolved}"
        return Behaviour(status=302, headers={"Location": location, "X-Repo-Commit": HUB_COMMIT})

    def _answer(self, request: Request) -> Behaviour:
        good = Behaviour(body=DATA)
        if request.range == (0, 1) or not request.path.startswith("/blob-1?"):
            return good
        if request.range is not None and request.range[0] == 0:
            # Mid-file: what comes before is kept.
            return replace(good, close_after_bytes=MIB + 1000)
        self._all_refused.wait(20)
        self.refused.append(request)
        return Behaviour(status=403, headers={"Content-Type": "text/html"}, body=PAGE)


def test_a_signed_address_that_runs_out_mid_file_is_resolved_once_for_all_connections(
    place: Place, hub: ModelSource, cdn: ModelSource
) -> None:
    signing = Signing(hub, cdn)
    ended = place.run(place.declare(source=f"hf://org/repo/m.gguf@{HUB_COMMIT}"))
    assert ended.code == 0, ended.output
    assert (place.root / "m.gguf").read_bytes() == DATA
    assert len(signing.refused) == 2, "both connections met the expired address"
    assert signing.num_resolved == 2
    assert "is refused (403)" in ended.output
    assert {request.headers.get("authorization") for request in hub.requests} == {f"Bearer {TOKEN}"}
    assert {request.headers.get("authorization") for request in cdn.requests} == {None}
    assert 0 not in killing.asked_blocks(_bodies(cdn), cdn.requests[-1].path), "what had come is not asked for again"
    events = [json.loads(line) for line in ended.output.splitlines() if line.startswith("{")]
    assert any(event["event"] == "finished" and event["outcome"] == "fetched" for event in events)


def _bodies(source: ModelSource) -> list[Request]:
    return [request for request in source.requests if request.range != (0, 1)]


def test_a_token_is_of_its_port_alone(place: Place, hub: ModelSource, cdn: ModelSource) -> None:
    cdn.files["/m.gguf"] = DATA
    assert place.run(place.declare(source=f"{cdn.url}/m.gguf?sig=QUERYSECRET")).code == 0
    assert {request.headers.get("authorization") for request in cdn.requests} == {None}
    assert hub.requests == []


FAULTS: dict[str, Callable[[Request], Behaviour]] = {
    "denied": lambda _: Behaviour(status=401, body=PAGE),
    "expired at once": lambda _: Behaviour(status=403, body=PAGE),
    "gone": lambda _: Behaviour(status=404, body=PAGE),
    "overloaded": lambda _: Behaviour(status=503, headers={"Retry-After": "0"}, body=PAGE),
    "refused": lambda _: Behaviour(status=418, body=PAGE),
    "a login page": lambda _: Behaviour(body=PAGE.ljust(len(DATA)), ranges=False),
    "another file": lambda _: Behaviour(body=DATA[:-1] + b"\1"),
    "broken off": lambda _: Behaviour(body=DATA, close_after_bytes=0),
    "a range ignored": lambda request: Behaviour(body=DATA, ranges=request.range == (0, 1)),
    "a range of elsewhere": lambda request: Behaviour(body=DATA, range_shift=0 if request.range == (0, 1) else 7),
    "coded": lambda _: Behaviour(body=DATA, headers={"Content-Encoding": "gzip"}),
    "no answer": lambda _: Behaviour(status=299, headers={"Content-Length": "x"}),
}
REDIRECTS = {
    "malformed": "https://[QUERYSECRET/m?sig=QUERYSECRET",
    "no port": "https://127.0.0.1:99999/m?sig=QUERYSECRET",
    "not https": "http://user:PASSWORDSECRET@127.0.0.1/m?sig=QUERYSECRET",
    "link-local": "https://user:PASSWORDSECRET@169.254.169.254/m?sig=QUERYSECRET",
    "nobody there": "https://user:PASSWORDSECRET@127.0.0.1:1/m?sig=QUERYSECRET",
    "no such host": "https://user:PASSWORDSECRET@nobody.invalid/m?sig=QUERYSECRET#FRAGMENTSECRET",
    "no host at all": "https://a..b/m?sig=QUERYSECRET",
    "a loop": f"{HUB_PATH}?sig=QUERYSECRET",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_no_secret_is_told_when_a_signed_address_is(place: Place, hub: ModelSource, cdn: ModelSource, fault: str) -> None:
    location = f"{cdn.url.replace('//', '//user:PASSWORDSECRET@')}/blob?X-Signature=QUERYSECRET#FRAGMENTSECRET"
    hub.behave = lambda _: Behaviour(status=302, headers={"Location": location})
    cdn.behave = FAULTS[fault]
    config = place.declare(source=f"hf://org/repo/m.gguf@{HUB_COMMIT}")
    place.run(config)
    cdn.behave = lambda request: Behaviour(body=DATA) if request.range == (0, 1) else FAULTS[fault](request)
    place.run(config)
    assert any("QUERYSECRET" in request.path for request in cdn.requests)


@pytest.mark.parametrize("redirect", REDIRECTS)
def test_no_secret_is_told_when_a_redirect_leads_to(place: Place, hub: ModelSource, redirect: str) -> None:
    hub.behave = lambda _: Behaviour(status=302, headers={"Location": REDIRECTS[redirect]})
    assert place.run(place.declare(source=f"hf://org/repo/m.gguf@{HUB_COMMIT}")).code != 0
    assert hub.requests


@pytest.mark.parametrize("command", ["sync", "plan", "verify"])
def test_no_secret_of_the_declaration_is_told(place: Place, cdn: ModelSource, command: str) -> None:
    cdn.files["/m.gguf"] = DATA
    source = f"{cdn.url.replace('//', '//user:PASSWORDSECRET@')}/m.gguf?sig=QUERYSECRET#FRAGMENTSECRET"
    config = place.declare(source=source.replace("/m.gguf", "/gone.gguf"), mirrors=[source])
    place.run(config, command)
    assert place.run(config).code == 0
    place.run(config, command)


@pytest.mark.parametrize(
    ("text", "environ"),
    [
        ("source: htp://user:PASSWORDSECRET@host/m.gguf?sig=QUERYSECRET", {}),
        ("source: hf://org/m.gguf?sig=QUERYSECRET", {}),
        ("source: 'https://user:PASSWORDSECRET@host/m?sig=QUERYSECRET", {}),
        ("source: https://host/m?sig=QUERYSECRET\n   sha256: [", {}),
        ("source: https://h/m\n    sourc: https://user:PASSWORDSECRET@h/m?sig=QUERYSECRET", {}),
        ("source: [https://user:PASSWORDSECRET@h/m?sig=QUERYSECRET]", {}),
        ("source: https://h/m\n    mirrors: https://user:PASSWORDSECRET@h/m?sig=QUERYSECRET", {}),
        ("source: https://h/m\n    sha256: https://user:PASSWORDSECRET@h/m?sig=QUERYSECRET", {}),
        ("source: https://h/m", {"HF_ENDPOINT": "ftp://user:PASSWORDSECRET@h/?sig=QUERYSECRET"}),
        ("source: https://h/m", {"HF_TOKEN": "TOKEN SECRET\n"}),
    ],
)
def test_no_secret_is_told_of_a_wrong_declaration_or_setting(place: Place, text: str, environ: dict[str, str]) -> None:
    config = place.folder / "downloads.yaml"
    config.write_text(f"modelPath: {place.root}\nmodels:\n  - id: m\n    file: m.gguf\n    {text}\n")
    assert place.run(config, **environ).code == 2


PROXY_FAULTS: dict[str, Behaviour] = {
    "works": Behaviour(body=DATA),
    "wants other credentials": Behaviour(status=407, headers={"Proxy-Authenticate": "Basic"}, body=PAGE),
    "reaches nobody": Behaviour(status=502, body=PAGE),
    "breaks off": Behaviour(body=DATA, close_after_bytes=0),
}


@pytest.mark.parametrize("fault", [*PROXY_FAULTS, "is not there", "is malformed"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_secret_of_a_proxy_is_told_when_it(place: Place, source: ModelSource, fault: str, scheme: str) -> None:
    source.behave = lambda _: PROXY_FAULTS[fault]
    address = {"is not there": "127.0.0.1:1", "is malformed": "127.0.0.1:x"}.get(fault, source.url.partition("//")[2])
    proxy = f"http://user:PROXYSECRET@{address}"
    proxies = {"NO_PROXY": "", "no_proxy": "", f"{scheme.upper()}_PROXY": proxy, f"{scheme}_proxy": proxy}
    ended = place.run(place.declare(source=f"{scheme}://host.invalid/m.gguf?sig=QUERYSECRET"), **proxies)
    if scheme == "http" and fault == "works":
        assert ended.code == 0, ended.output
        assert "proxy-authorization" in source.requests[0].headers
    else:
        assert ended.code not in (0, 1), ended.output
