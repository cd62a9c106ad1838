"""The client against a real server: what a probe learns, and what is refused before a byte of body is used."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import trustme

from nlocalmodels_downloader import http_client
from nlocalmodels_downloader.bandwidth import Throttle
from nlocalmodels_downloader.errors import DownloaderError, ExpiredError, RangeError, RefusedError, TransientError
from nlocalmodels_downloader.http_client import HttpClient
from support.downloads import wait_for
from support.model_source import Behaviour, ModelSource, Request

DATA = bytes(range(256)) * 40


@pytest.fixture
def client() -> HttpClient:
    return HttpClient(connect_timeout_seconds=5.0, stall_seconds=10.0)


@pytest.fixture
def url(source: ModelSource) -> str:
    source.files["/m"] = DATA
    return f"{source.url}/m"


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_source(authority: trustme.CA) -> Iterator[ModelSource]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with ModelSource(tls=context).running() as running:
        running.files["/m"] = DATA
        yield running


def _read(client: HttpClient, url: str, start: int, end: int) -> bytes:
    with client.stream(client.probe(url), start, end) as chunks:
        return b"".join(chunks)


def test_probe_learns_size_validator_and_ranges(client: HttpClient, url: str) -> None:
    remote = client.probe(url)
    assert (remote.size_bytes, remote.etag, remote.ranges, remote.url) == (len(DATA), '"v1"', True, url)


def test_probe_learns_the_size_without_ranges(client: HttpClient, source: ModelSource, url: str) -> None:
    source.behave = lambda _: Behaviour(ranges=False)
    remote = client.probe(url)
    assert (remote.size_bytes, remote.ranges) == (len(DATA), False)


def test_probe_names_no_size_when_the_server_does_not(client: HttpClient, source: ModelSource, url: str) -> None:
    source.behave = lambda _: Behaviour(content_range="bytes 0-0/*")
    assert client.probe(url).size_bytes is None


@pytest.mark.parametrize("length", ["\u00b2", "x", "-5"])
def test_probe_survives_a_content_length_that_is_no_number(
    client: HttpClient, source: ModelSource, url: str, length: str
) -> None:
    source.behave = lambda _: Behaviour(ranges=False, headers={"Content-Length": length})
    with suppress(TransientError):  # http.client itself may refuse it
        assert client.probe(url).size_bytes is None


@pytest.mark.parametrize("etag", ['W/"v1"', "v1", '""', None])
def test_probe_takes_no_weak_or_malformed_etag(client: HttpClient, source: ModelSource, url: str, etag: str | None) -> None:
    source.behave = lambda _: Behaviour(etag=etag)
    assert client.probe(url).etag is None


def test_probe_remembers_where_redirects_led_and_where_to_ask_again(
    client: HttpClient, source: ModelSource, other_source: ModelSource
) -> None:
    other_source.files["/blob"] = DATA
    source.behave = lambda _: Behaviour(status=307, headers={"Location": f"{other_source.url}/blob?sig=1"})
    remote = client.probe(f"{source.url}/m")
    assert remote.origin_url == f"{source.url}/m"
    assert remote.url == f"{other_source.url}/blob?sig=1"


def test_stream_yields_the_bytes_asked_for(client: HttpClient, url: str) -> None:
    assert _read(client, url, 100, 5000) == DATA[100:5000]


def test_stream_uses_one_connection_again(client: HttpClient, source: ModelSource, url: str) -> None:
    remote = client.probe(url)
    for start in range(0, 5000, 1000):
        with client.stream(remote, start, start + 1000) as chunks:
            assert b"".join(chunks) == DATA[start : start + 1000]
    assert len({request.client_port for request in source.requests[1:]}) == 1


def test_stream_refuses_a_whole_body_for_a_range(client: HttpClient, source: ModelSource, url: str) -> None:
    remote = client.probe(url)
    source.behave = lambda _: Behaviour(ranges=False)
    with pytest.raises(RangeError), client.stream(remote, 0, 10):
        pass


def test_stream_refuses_a_range_of_a_file_of_another_size(client: HttpClient, source: ModelSource, url: str) -> None:
    remote = client.probe(url)
    source.behave = lambda _: Behaviour(body=DATA + b"more")
    with pytest.raises(RangeError), client.stream(remote, 0, 10):
        pass


def test_stream_says_expired_only_behind_a_redirect(client: HttpClient, source: ModelSource, url: str) -> None:
    remote = client.probe(url)
    source.behave = lambda _: Behaviour(status=403)
    with pytest.raises(DownloaderError) as caught, client.stream(remote, 0, 10):
        pass
    assert not isinstance(caught.value, ExpiredError)
    with pytest.raises(ExpiredError), client.stream(replace(remote, origin_url=f"{source.url}/origin"), 0, 10):
        pass


def test_abort_ends_a_read_under_way(client: HttpClient, source: ModelSource, url: str) -> None:
    remote = client.probe(url)
    source.behave = lambda _: Behaviour(stall_after_bytes=10)
    got: list[bytes] = []
    ended: list[BaseException] = []

    def read() -> None:
        try:
            with client.stream(remote, 0, 5000) as chunks:
                got.extend(bytes(chunk) for chunk in chunks)
        except DownloaderError as error:
            ended.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    wait_for(lambda: source.sent_bytes >= 10, "the first bytes")
    while thread.is_alive():
        client.abort()
        thread.join(0.05)
    assert [type(error) for error in ended] == [TransientError]


def test_abort_disturbs_nobody_while_reads_end_by_themselves(client: HttpClient, url: str) -> None:
    remote = client.probe(url)
    done = threading.Event()
    unexpected: list[BaseException] = []

    def read() -> None:
        try:
            for _ in range(60):
                try:
                    with client.stream(remote, 0, 5000) as chunks:
                        b"".join(chunks)
                except TransientError:
                    continue
        except BaseException as error:
            unexpected.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=read)
    thread.start()
    while not done.is_set():
        client.abort()
    thread.join()
    assert unexpected == []


def test_https_is_trusted_by_the_bundle_that_is_named(
    client: HttpClient, tls_source: ModelSource, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RefusedError, match="REQUESTS_CA_BUNDLE"):
        client.probe(f"{tls_source.url}/m")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "absent.pem"))
    with pytest.raises(RefusedError, match="REQUESTS_CA_BUNDLE"):
        client.probe(f"{tls_source.url}/m")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    assert _read(client, f"{tls_source.url}/m", 5, 5000) == DATA[5:5000]


def test_https_never_leads_to_http(
    client: HttpClient,
    tls_source: ModelSource,
    source: ModelSource,
    authority: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    tls_source.behave = lambda _: Behaviour(status=302, headers={"Location": f"{source.url}/m"})
    with pytest.raises(RefusedError, match="not https"):
        client.probe(f"{tls_source.url}/m")
    assert source.requests == []


def test_http_may_lead_to_https(
    client: HttpClient,
    tls_source: ModelSource,
    source: ModelSource,
    authority: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    source.behave = lambda _: Behaviour(status=302, headers={"Location": f"{tls_source.url}/m"})
    assert _read(client, f"{source.url}/x", 0, 100) == DATA[:100]


@pytest.mark.parametrize(("status", "num_hops", "works"), [(301, 10, True), (302, 10, True), (303, 1, True), (308, 11, False)])
def test_redirects_are_followed_up_to_a_bound(
    client: HttpClient, source: ModelSource, status: int, num_hops: int, works: bool
) -> None:
    def behave(request: Request) -> Behaviour:
        hop = int(request.path[1:])
        return Behaviour(status=status, headers={"Location": f"/{hop + 1}"}) if hop < num_hops else Behaviour(body=DATA)

    source.behave = behave
    if works:
        assert client.probe(f"{source.url}/0").size_bytes == len(DATA)
    else:
        with pytest.raises(RefusedError, match="more than 10 redirects"):
            client.probe(f"{source.url}/0")


def test_redirects_reach_a_path_of_other_letters(client: HttpClient, source: ModelSource) -> None:
    source.files["/mod%C3%A8le"] = DATA
    source.behave = lambda r: Behaviour(status=302, headers={"Location": "/mod%C3%A8le"}) if r.path == "/m" else Behaviour()
    assert client.probe(f"{source.url}/m").size_bytes == len(DATA)


def test_errors_name_the_system_s_reason_and_no_query(client: HttpClient) -> None:
    with pytest.raises(TransientError, match="Connection refused") as caught:
        client.probe("http://127.0.0.1:9/m?sig=SECRET")
    assert "SECRET" not in str(caught.value)


class _SlowThrottle(Throttle):
    """Lets 100 bytes through in as many seconds, on a clock of its own, and tells or keeps quiet about it."""

    def __init__(self, tells: bool) -> None:
        super().__init__(1024, threading.Event())
        self.piece_bytes = 100
        self.now_seconds = 0.0
        self._tells = tells

    def wait(self, num_bytes: int) -> float:
        self.now_seconds += 100.0
        return 100.0 if self._tells else 0.0


@pytest.mark.parametrize("tells", [True, False])
def test_waiting_for_the_bandwidth_limit_is_no_stall(url: str, monkeypatch: pytest.MonkeyPatch, tells: bool) -> None:
    throttle = _SlowThrottle(tells)
    client = HttpClient(5.0, 10.0, throttle=throttle)
    remote = client.probe(url)
    monkeypatch.setattr(http_client, "time", SimpleNamespace(monotonic=lambda: throttle.now_seconds))
    with client.stream(remote, 0, 1000) as chunks:
        if tells:
            assert b"".join(bytes(chunk) for chunk in chunks) == DATA[:1000]
        else:
            with pytest.raises(TransientError, match="stalled"):
                list(chunks)
