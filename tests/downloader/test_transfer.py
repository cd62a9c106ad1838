"""A file's way over HTTP into a finished file, fault by fault. Each case checks the bytes that were published."""

from __future__ import annotations

import email.utils
import socket
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from nlocalmodels_downloader.errors import CorruptError, DeniedError, ExhaustedError, GoneError, RefusedError, StoppedError
from nlocalmodels_downloader.partial import Partial
from nlocalmodels_downloader.segments import MAX_OUTSTANDING_BYTES
from support.downloads import MIB, Downloads, sha256, wait_for
from support.model_source import Behaviour, ModelSource, Request


def _on_bodies(behaviour: Callable[[Request], Behaviour]) -> Callable[[Request], Behaviour]:
    """Answers probes well and all else by `behaviour`."""
    return lambda request: Behaviour() if request.range == (0, 1) else behaviour(request)


def _bodies(source: ModelSource) -> list[Request]:
    return [request for request in source.requests if request.range != (0, 1)]


def test_transfer_fetches_every_byte_once_over_several_connections(downloads: Downloads) -> None:
    data = downloads.serve(num_bytes=20 * MIB + 5)
    assert downloads.sync(downloads.model(data)) == []
    assert downloads.published() == data
    spans = sorted(request.range or (0, 0) for request in _bodies(downloads.source))
    assert len(spans) >= 3
    assert max(end - start for start, end in spans) <= MAX_OUTSTANDING_BYTES / 2
    assert spans[0][0] == 0
    assert spans[-1][1] == len(data)
    assert all(before[1] == after[0] for before, after in pairwise(spans))


def test_transfer_asks_for_identity_and_the_strong_etag(downloads: Downloads) -> None:
    data = downloads.serve()
    assert downloads.sync(downloads.model(data)) == []
    assert {request.headers["accept-encoding"] for request in downloads.source.requests} == {"identity"}
    assert {request.headers["if-range"] for request in _bodies(downloads.source)} == {'"v1"'}


def test_transfer_takes_one_stream_when_ranges_are_ignored(downloads: Downloads) -> None:
    data = downloads.serve()
    downloads.source.behave = lambda _: Behaviour(ranges=False)
    assert downloads.sync(downloads.model(data)) == []
    assert downloads.published() == data
    assert len(_bodies(downloads.source)) == 1


def test_transfer_takes_one_stream_when_ranges_are_ignored_after_the_probe(downloads: Downloads) -> None:
    data = downloads.serve()
    downloads.source.behave = _on_bodies(lambda _: Behaviour(ranges=False))
    assert downloads.sync(downloads.model(data)) == []
    assert downloads.published() == data


def test_transfer_rejects_a_206_from_another_start(downloads: Downloads) -> None:
    data = downloads.serve()
    downloads.source.behave = _on_bodies(lambda _: Behaviour(range_shift=1))
    assert downloads.sync(downloads.model(data)) == []
    assert downloads.published() == data


@pytest.mark.parametrize("content_range", ["", "bytes 0-", "bytes 0-9/9x", "items 0-1/2", "bytes 0-0/" + "9" * 5000])
def test_transfer_takes_one_stream_when_content_range_is_unusable(downloads: Downloads, content_range: str) -> None:
    data = downloads.serve()
    downloads.source.behave = lambda _: Behaviour(content_range=content_range)
    assert downloads.sync(downloads.model(data)) == []
    assert downloads.published() == data


def test_transfer_takes_one_stream_when_only_bodies_lack_content_range(
    downloads: Downloads, caplog: pytest.LogCaptureFixture
) -> None:
    data = downloads.serve()
    downloads.source.behave = _on_bodies(lambda _: Behaviour(content_range=""))
    assert downloads.sync(downloads.model(data)) == []
    assert downloads.published() == data
    assert "one stream" in caplog.text


def test_transfer_stops_at_the_boundary_when_more_bytes_come(downloads: Downloads) -> None:
    data = downloads.serve(num_bytes=9 * MIB)
    downloads.source.behave = _on_bodies(lambda _: Behaviour(extra_bytes=5000))
    assert downloads.sync(downloads.model(data)) == []
    assert downloads.published() == data


def test_transfer_resumes_a_short_body_where_it_ended(downloads: Downloads) -> None:
    data = downloads.serve(num_bytes=MIB)
    downloads.source.behave = _on_bodies(
        lambda _: Behaviour(close_after_bytes=300_000 if len(_bodies(downloads.source)) == 1 else None)
    )
    assert downloads.sync(downloads.model(data)) == []
    assert downloads.published() == data
    assert [request.range for request in _bodies(downloads.source)] == [(0, MIB), (300_000, MIB)]


def test_transfer_resumes_a_chunked_body_that_closes_early(downloads: Downloads) -> None:
    data = downloads.serve(num_bytes=MIB)
    downloads.source.behave = _on_bodies(
        lambda _: Behaviour(chunked=True, close_after_bytes=300_000 if len(_bodies(downloads.source)) == 1 else None)
    )
    assert downloads.sync(downloads.model(data)) == []
    assert downloads.published() == data


def test_transfer_gives_up_when_a_source_without_ranges_always_breaks_off(downloads: Downloads) -> None:
    data = downloads.serve()
    downloads.source.behave = lambda _: Behaviour(ranges=False, close_after_bytes=2 * MIB)
    [error] = downloads.sync(downloads.model(data))
    assert isinstance(error, ExhaustedError)
    assert len(downloads.source.requests) == 1 + downloads.settings.num_attempts
    assert downloads.published() is None


def test_transfer_asks_no_byte_again_when_all_are_there_and_ranges_are_gone(downloads: Downloads) -> None:
    data = downloads.serve(num_bytes=2 * MIB)
    downloads.partials.mkdir(parents=True)
    partial = Partial(downloads.partials, sha256(data), len(data), None)
    partial.write(0, data)
    for block in (0, 1):
        partial.complete(block, zlib.crc32(data[block * MIB : (block + 1) * MIB]))
    partial.close()
    downloads.source.behave = lambda _: Behaviour(ranges=False)
    assert downloads.sync(downloads.model(data)) == []
    assert downloads.published() == data
    assert _bodies(downloads.source) == []


def test_transfer_starts_again_when_the_object_is_replaced_by_one_of_the_same_size(downloads: Downloads) -> None:
    old, new = downloads.serve(num_bytes=20 * MIB, seed=1), downloads.serve(num_bytes=20 * MIB, seed=2)
    spoiled = threading.Event()

    def behave(request: Request) -> Behaviour:
        if request.range == (0, 1) and not spoiled.is_set():
            return Behaviour(body=old, etag='"old"')
        if request.range is not None and request.range[0] == 0 and not spoiled.is_set():
            spoiled.set()
            return Behaviour(body=old, etag='"old"', close_after_bytes=2 * MIB)
        spoiled.wait(10)
        return Behaviour(etag='"new"')

    downloads.source.behave = behave
    assert downloads.sync(downloads.model(new)) == []
    assert downloads.published() == new


def test_transfer_mixes_no_versions_when_no_digest_is_known(downloads: Downloads) -> None:
    old, new = downloads.serve(num_bytes=20 * MIB, seed=1), downloads.serve(num_bytes=20 * MIB, seed=2)
    first_sent = threading.Event()

    def behave(request: Request) -> Behaviour:
        if not first_sent.is_set():
            if request.range == (0, 1):
                return Behaviour(body=old, etag='"old"')
            if request.range is not None and request.range[0] == 0:
                first_sent.set()
                return Behaviour(body=old, etag='"old"')
        first_sent.wait(10)
        return Behaviour(body=new, etag='"new"')

    downloads.source.behave = behave
    [error] = downloads.sync(downloads.model(None), allow_unverified=True)
    assert isinstance(error, CorruptError)
    assert "declare sha256" in str(error)
    assert downloads.published() is None
    assert downloads.sync(downloads.model(None), allow_unverified=True) == []
    assert downloads.published() == new


def test_transfer_takes_one_stream_when_neither_digest_nor_validator_is_known(downloads: Downloads) -> None:
    data = downloads.serve(num_bytes=6 * MIB)
    downloads.source.behave = lambda _: Behaviour(etag=None)
    assert downloads.sync(downloads.model(None), allow_unverified=True) == []
    assert downloads.published() == data
    assert [request.range for request in _bodies(downloads.source)] == [None]


def test_transfer_compares_the_etag_itself_when_the_server_refuses_if_range_and_no_digest_is_known(
    downloads: Downloads,
) -> None:
    data, other = downloads.serve(num_bytes=6 * MIB), downloads.serve("other", num_bytes=6 * MIB, seed=5)

    def behave(request: Request) -> Behaviour:
        if "if-range" not in request.headers and request.range is not None and request.range[0] > 0:
            return Behaviour(body=other, etag='"other"')
        return Behaviour(body=data, honours_if_range=False)

    downloads.source.behave = behave
    downloads.sync(downloads.model(None), allow_unverified=True)
    assert downloads.published() in (None, data)


def test_transfer_sends_no_weak_etag(downloads: Downloads) -> None:
    data = downloads.serve()
    downloads.source.behave = lambda _: Behaviour(etag='W/"v1"')
    assert downloads.sync(downloads.model(data)) == []
    assert downloads.published() == data
    assert not any("if-range" in request.headers for request in downloads.source.requests)


def test_transfer_does_without_if_range_when_the_server_never_matches_it(downloads: Downloads) -> None:
    data = downloads.serve()
    downloads.source.behave = lambda _: Behaviour(honours_if_range=False)
    assert downloads.sync(downloads.model(data)) == []
    assert downloads.published() == data
    assert any(r.range not in (None, (0, 1)) and "if-range" not in r.headers for r in downloads.source.requests)


def test_transfer_trusts_the_digest_more_than_an_etag_that_varies(downloads: Downloads) -> None:
    data = downloads.serve()
    downloads.source.behave = lambda _: Behaviour(etag=f'"{len(downloads.source.requests)}"')
    assert downloads.sync(downloads.model(data)) == []
    assert downloads.published() == data
    assert all(request.range is not None for request in downloads.source.requests), "ranges still work and are to be used"


@pytest.mark.parametrize("during", ["probe", "body"])
def test_transfer_refuses_coded_content(downloads: Downloads, during: str) -> None:
    data = downloads.serve()
    coded = Behaviour(headers={"Content-Encoding": "gzip"})
    downloads.source.behave = (lambda _: coded) if during == "probe" else _on_bodies(lambda _: coded)
    [error] = downloads.sync(downloads.model(data))
    assert isinstance(error, RefusedError)
    assert "gzip" in str(error)
    assert downloads.published() is None


def test_transfer_recognises_a_login_page(downloads: Downloads) -> None:
    data = downloads.serve()
    downloads.source.behave = lambda _: Behaviour(body=b"<!DOCTYPE html><title>Sign in</title>" * 20, ranges=False)
    [error] = downloads.sync(downloads.model(data))
    assert isinstance(error, CorruptError)
    assert "<!DOCTYPE html>" in str(error)
    assert downloads.published() is None


def test_transfer_recognises_a_login_page_when_the_size_is_declared(downloads: Downloads) -> None:
    data = downloads.serve()
    downloads.source.behave = lambda _: Behaviour(body=b"<!DOCTYPE html>", ranges=False)
    [error] = downloads.sync(downloads.model(data, size_bytes=len(data)))
    assert isinstance(error, CorruptError)
    assert f"15 bytes, but sizeBytes declares {len(data)}" in str(error)


@pytest.mark.parametrize("expired_status", [400, 401, 403, 404, 410])
def test_transfer_resolves_again_when_a_signed_address_expires(downloads: Downloads, expired_status: int) -> None:
    data = downloads.serve(num_bytes=10 * MIB)
    lock = threading.Lock()
    valid = ["/signed-0"]
    refused: list[str] = []

    def behave(request: Request) -> Behaviour:
        with lock:
            if request.path == "/m.gguf":
                return Behaviour(status=302, headers={"Location": valid[0] + "?sig=SECRET"})
            if request.range != (0, 1) and request.range is not None and request.range[0] >= 4 * MIB and valid == ["/signed-0"]:
                valid[0] = "/signed-1"
            if request.path.split("?")[0] != valid[0]:
                refused.append(request.path)
                return Behaviour(status=expired_status, body=b"<Error>Request has expired</Error>")
            return Behaviour(body=data)

    downloads.source.behave = behave
    assert downloads.sync(downloads.model(data)) == []
    assert downloads.published() == data
    assert refused


def test_transfer_resolves_once_for_all_connections_that_meet_an_expired_address(downloads: Downloads) -> None:
    downloads.settings = replace(downloads.settings, num_connections=2)
    data = downloads.serve(num_bytes=16 * MIB)
    all_refused = threading.Barrier(2)
    generation = [0]

    def behave(request: Request) -> Behaviour:
        if request.path == "/m.gguf":
            generation[0] += 1
            return Behaviour(status=302, headers={"Location": f"/signed-{generation[0]}"})
        if request.path == "/signed-1" and request.range != (0, 1):
            all_refused.wait(10)
            return Behaviour(status=403)
        return Behaviour(body=data)

    downloads.source.behave = behave
    assert downloads.sync(downloads.model(data)) == []
    assert downloads.published() == data
    assert generation[0] == 2


@pytest.mark.parametrize(
    ("status", "error_type", "exit_code"),
    [(401, DeniedError, 10), (403, DeniedError, 10), (404, GoneError, 11), (410, GoneError, 11), (418, RefusedError, 15)],
)
def test_transfer_ends_at_once_when_no_attempt_can_help(
    downloads: Downloads, status: int, error_type: type[Exception], exit_code: int
) -> None:
    data = downloads.serve()
    downloads.source.behave = lambda _: Behaviour(status=status)
    [error] = downloads.sync(downloads.model(data))
    assert type(error) is error_type
    assert error.exit_code == exit_code
    assert str(status) in str(error)
    assert len(downloads.source.requests) == 1


def test_transfer_ends_at_once_when_one_connection_fails_for_good_while_others_wait(
    downloads: Downloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nlocalmodels_downloader.retry.MAX_RETRY_AFTER_SECONDS", 3600.0)
    data = downloads.serve(num_bytes=16 * MIB)
    another_waits = threading.Event()

    def behave(request: Request) -> Behaviour:
        if request.range is not None and request.range[0] == 0:
            another_waits.wait(10)
            return Behaviour(status=404)
        another_waits.set()
        return Behaviour(status=503, headers={"Retry-After": "3600"})

    downloads.source.behave = _on_bodies(behave)
    [error] = downloads.sync(downloads.model(data))
    assert isinstance(error, GoneError)


@pytest.mark.parametrize(
    "form", ["seconds", "date", "a day", "garbage", "negative", "²", "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"]
)
def test_transfer_goes_on_after_503_with_retry_after(downloads: Downloads, form: str, caplog: pytest.LogCaptureFixture) -> None:
    data = downloads.serve(num_bytes=MIB)
    value = {
        "seconds": "1",
        "date": email.utils.formatdate(time.time() + 3000, usegmt=True),
        "a day": "86400",
        "garbage": "soon",
        "negative": "-5",
    }.get(form, form)
    downloads.source.behave = _on_bodies(
        lambda _: Behaviour(status=503, headers={"Retry-After": value}) if len(_bodies(downloads.source)) < 3 else Behaviour()
    )
    assert downloads.sync(downloads.model(data)) == []
    assert downloads.published() == data
    assert caplog.text.count("answered 503") == 2


def test_transfer_survives_more_failures_than_attempts_when_each_brings_bytes(downloads: Downloads) -> None:
    data = downloads.serve(num_bytes=MIB)
    downloads.source.behave = _on_bodies(
        lambda _: Behaviour(status=503) if len(_bodies(downloads.source)) % 2 else Behaviour(close_after_bytes=100_000)
    )
    assert downloads.sync(downloads.model(data)) == []
    assert downloads.published() == data
    assert len(_bodies(downloads.source)) > 4 * downloads.settings.num_attempts


def test_transfer_is_exhausted_when_nothing_comes(downloads: Downloads) -> None:
    data = downloads.serve()
    downloads.source.behave = lambda _: Behaviour(status=503)
    [error] = downloads.sync(downloads.model(data))
    assert isinstance(error, ExhaustedError)
    assert "503" in str(error)
    assert len(downloads.source.requests) == downloads.settings.num_attempts


def test_transfer_keeps_trying_when_the_connection_is_refused_and_then_not(downloads: Downloads) -> None:
    data = downloads.serve()
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        attempts: list[int] = []

        def resolve(request: Request) -> Behaviour:
            attempts.append(1)
            target = f"http://127.0.0.1:{port}/m.gguf" if len(attempts) < 4 else f"{downloads.source.url}/real.gguf"
            return Behaviour(status=302, headers={"Location": target})

        downloads.source.behave = lambda r: resolve(r) if r.path == "/m.gguf" else Behaviour(body=data)
        assert downloads.sync(downloads.model(data)) == []
    assert downloads.published() == data
    assert len(attempts) == 4


def test_transfer_breaks_off_a_stalled_connection_and_resumes(hasty_downloads: Downloads) -> None:
    downloads = hasty_downloads
    data = downloads.serve(num_bytes=MIB)
    downloads.source.behave = _on_bodies(
        lambda _: Behaviour(stall_after_bytes=400_000) if len(_bodies(downloads.source)) == 1 else Behaviour()
    )
    assert downloads.sync(downloads.model(data)) == []
    assert downloads.published() == data
    assert [request.range for request in _bodies(downloads.source)] == [(0, MIB), (400_000, MIB)]


def test_transfer_breaks_off_a_server_that_does_not_answer(hasty_downloads: Downloads) -> None:
    downloads = hasty_downloads
    data = downloads.serve(num_bytes=MIB)

    def behave(_: Request) -> Behaviour:
        if len(_bodies(downloads.source)) == 1:
            downloads.source.released.wait(30)
        return Behaviour()

    downloads.source.behave = _on_bodies(behave)
    assert downloads.sync(downloads.model(data)) == []
    assert downloads.published() == data


def test_transfer_breaks_off_a_connection_of_a_few_bytes_a_second(
    hasty_downloads: Downloads, caplog: pytest.LogCaptureFixture
) -> None:
    downloads = hasty_downloads
    data = downloads.serve(num_bytes=MIB)
    downloads.source.behave = _on_bodies(
        lambda _: Behaviour(bytes_per_second=20) if len(_bodies(downloads.source)) == 1 else Behaviour()
    )
    assert downloads.sync(downloads.model(data)) == []
    assert downloads.published() == data
    assert "the connection stalled" in caplog.text


def test_transfer_stops_while_a_server_is_silent(downloads: Downloads) -> None:
    data = downloads.serve()

    def behave(_: Request) -> Behaviour:
        downloads.stop.set()
        downloads.source.released.wait(30)
        return Behaviour()

    downloads.source.behave = behave
    with pytest.raises(StoppedError):
        downloads.sync(downloads.model(data))


def test_transfer_stops_while_waiting_to_try_again(downloads: Downloads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nlocalmodels_downloader.retry.MAX_RETRY_AFTER_SECONDS", 3600.0)
    data = downloads.serve()
    downloads.source.behave = _on_bodies(lambda _: Behaviour(status=429, headers={"Retry-After": "3600"}))

    def stop_after_a_refusal() -> None:
        wait_for(lambda: len(_bodies(downloads.source)) > 0, "a refused request")
        downloads.stop.set()

    stopper = threading.Thread(target=stop_after_a_refusal)
    stopper.start()
    with pytest.raises(StoppedError):
        downloads.sync(downloads.model(data))
    stopper.join()


def test_transfer_says_so_when_the_object_shrinks_meanwhile(downloads: Downloads) -> None:
    data = downloads.serve(num_bytes=8 * MIB)
    seen = threading.Event()

    def behave(request: Request) -> Behaviour:
        if not seen.is_set():
            seen.set()
            return Behaviour()
        return Behaviour(body=data[:1000])

    downloads.source.behave = behave
    [error] = downloads.sync(downloads.model(data))
    assert isinstance(error, CorruptError)
    assert "holds 1000 bytes instead of" in str(error)


def test_transfer_asks_without_range_when_a_range_is_refused_by_the_server_but_never_appends(downloads: Downloads) -> None:
    data = downloads.serve(num_bytes=8 * MIB)
    downloads.source.behave = _on_bodies(lambda r: Behaviour(status=416) if r.range else Behaviour())
    assert downloads.sync(downloads.model(data)) == []
    assert sha256(downloads.published() or b"") == sha256(data)
