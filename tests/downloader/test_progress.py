from __future__ import annotations

import threading

import pytest

from nlocalmodels_downloader.progress import ModelProgress, calling_every, human_bytes, human_seconds, progress_line
from support.downloads import wait_for


def test_progress_line_has_bytes_share_rate_and_time_left() -> None:
    line = progress_line("m", 512 * 1024**2, 2 * 1024**3, 16 * 1024**2)
    assert line == "m: 512.0 MiB of 2.00 GiB (25 %), 16.0 MiB/s, 1 min 36 s left"


def test_progress_line_promises_nothing_when_no_bytes_come() -> None:
    assert progress_line("m", 0, 100, 0) == "m: 0 B of 100 B (0 %), 0 B/s, no bytes coming"


@pytest.mark.parametrize(("value", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 * 1024**4, "5120.00 GiB")])
def test_human_bytes(value: float, text: str) -> None:
    assert human_bytes(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (61, "1 min 01 s"), (7384, "2 h 03 min")])
def test_human_seconds(value: float, text: str) -> None:
    assert human_seconds(value) == text


def test_model_progress_counts_bytes_that_come_again_as_traffic_but_not_as_progress() -> None:
    progress = ModelProgress("m", 100, 20)
    progress.received(30)
    progress.restarted(0)
    progress.received(40)
    assert (progress.present_bytes(), progress.total_bytes(), progress.furthest_bytes()) == (40, 70, 50)


def test_model_progress_is_right_when_threads_add_to_it() -> None:
    progress = ModelProgress("m", 4000, 0)

    def add() -> None:
        for _ in range(1000):
            progress.received(1)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert progress.total_bytes() == 4000


def test_calling_every_calls_while_the_block_runs_and_not_after() -> None:
    calls: list[int] = []
    num_threads = threading.active_count()
    with calling_every(0.01, lambda: calls.append(1)):
        wait_for(lambda: len(calls) >= 2, "two calls")
    assert threading.active_count() == num_threads
