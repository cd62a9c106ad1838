"""The bandwidth limit: pure with a clock that is told, then over real connections."""

from __future__ import annotations

import heapq
import threading
import time
from dataclasses import replace

import pytest

from nlocalmodels_downloader.bandwidth import Throttle, TokenBucket
from nlocalmodels_downloader.errors import StoppedError
from support.downloads import Downloads, wait_for
from support.model_source import Behaviour

RATE = 1_000_000


def _received(bucket: TokenBucket, num_connections: int, piece_bytes: int, seconds: float) -> list[tuple[float, int]]:
    """Lets connections that always have bytes take turns as the bucket says. Returns time and bytes of each piece."""
    pieces: list[tuple[float, int]] = []
    waiting = [(0.0, number) for number in range(num_connections)]
    while waiting[0][0] < seconds:
        now_seconds, number = heapq.heappop(waiting)
        pieces.append((now_seconds, piece_bytes))
        heapq.heappush(waiting, (now_seconds + bucket.take(piece_bytes, now_seconds), number))
    return pieces


@pytest.mark.parametrize("num_connections", [1, 2, 16])
@pytest.mark.parametrize("piece_bytes", [1, 1000, 100_000])
def test_all_connections_together_keep_to_the_rate(num_connections: int, piece_bytes: int) -> None:
    pieces = _received(TokenBucket(RATE), num_connections, piece_bytes, seconds=3.0 if piece_bytes > 1 else 0.05)
    end_seconds = pieces[-1][0]
    num_bytes = sum(piece for _, piece in pieces)
    assert RATE * end_seconds <= num_bytes <= RATE * end_seconds + (num_connections + 1) * piece_bytes


def test_bytes_come_evenly() -> None:
    pieces = _received(TokenBucket(RATE), 16, 10_000, seconds=3.0)
    for start in range(2, 28):
        in_window = sum(size for seconds, size in pieces if start / 10 <= seconds < start / 10 + 0.1)
        assert in_window == pytest.approx(RATE / 10, abs=20_000)


def test_what_was_not_used_is_made_up_for_only_for_a_moment() -> None:
    bucket = TokenBucket(RATE)
    assert bucket.take(RATE, 0.0) == 1.0
    assert bucket.take(RATE // 4, 100.0) == 0.0
    assert bucket.take(RATE, 100.0) == 1.0


def test_a_clock_that_stands_still_gives_nothing_away() -> None:
    bucket = TokenBucket(RATE)
    assert [bucket.take(RATE // 2, 5.0) for _ in range(3)] == [0.5, 1.0, 1.5]


def test_a_wait_ends_with_the_stop() -> None:
    stop = threading.Event()
    throttle = Throttle(1024, stop)
    thread = threading.Thread(target=throttle.wait, args=(1 << 40,), daemon=True)
    thread.start()
    stop.set()
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize("rate", [1024, 1 << 20, 1 << 50])
def test_pieces_are_a_fraction_of_a_second(rate: int) -> None:
    assert 0 < Throttle(rate, threading.Event()).piece_bytes <= max(1024, rate // 10)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_limited_transfer_takes_its_time(downloads: Downloads, ranges: bool) -> None:
    limit, num_bytes = 1_000_000, 1_500_000
    settings = replace(downloads.settings, max_bytes_per_second=limit)
    data = downloads.serve(num_bytes=num_bytes)
    downloads.source.behave = lambda _: Behaviour(ranges=ranges)
    started_seconds = time.monotonic()
    assert replace(downloads, settings=settings).sync(downloads.model(data)) == []
    # Never faster than the limit; how much slower is the machine's affair.
    assert time.monotonic() - started_seconds >= num_bytes / limit
    assert downloads.published() == data


def test_two_files_at_once_share_the_limit(downloads: Downloads) -> None:
    limit = 2_000_000
    settings = replace(downloads.settings, max_bytes_per_second=limit)
    models = [downloads.model(downloads.serve(name, 1_200_000, seed), name) for seed, name in enumerate(("a", "b"))]
    started_seconds = time.monotonic()
    assert replace(downloads, settings=settings).sync(*models) == []
    assert time.monotonic() - started_seconds >= 2 * 1_200_000 / limit


def test_a_limited_transfer_stops_at_once(downloads: Downloads) -> None:
    settings = replace(downloads.settings, max_bytes_per_second=1024)
    limited = replace(downloads, settings=settings)
    model = downloads.model(downloads.serve())
    errors: list[BaseException] = []

    def sync() -> None:
        try:
            limited.sync(model)
        except StoppedError as error:
            errors.append(error)

    thread = threading.Thread(target=sync)
    thread.start()
    wait_for(lambda: downloads.source.sent_bytes > 10_000, "bytes")
    downloads.stop.set()
    # At this rate the file would take the better part of an hour.
    thread.join(20)
    assert not thread.is_alive()
    assert len(errors) == 1
