"""The downloader as a process that is killed at any moment, and told to stop in any state."""

from __future__ import annotations

import random
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nlocalmodels_downloader.segments import BLOCK_BYTES, MAX_OUTSTANDING_BYTES, num_blocks
from support.downloads import MIB, Downloads, start_command, wait_for
from support.model_source import Behaviour, Request

NUM_KILLS = 10
SIZE = 48 * MIB + 123


def _claimed_blocks(downloads: Downloads) -> set[int]:
    """Returns the blocks that a whole journal line claims."""
    journals = list(downloads.partials.glob("*.journal"))
    lines = [line for path in journals for line in path.read_bytes().splitlines(keepends=True)[1:]]
    return {int(line.split()[0]) for line in lines if re.fullmatch(rb"\d+ [0-9a-f]{8}\n", line)}


def _asked_blocks(requests: list[Request]) -> set[int]:
    spans = [request.range for request in requests if request.range not in (None, (0, 1))]
    return {block for span in spans if span for block in range(span[0] // BLOCK_BYTES, num_blocks(span[1]))}


@pytest.mark.parametrize("seed", [1, 2])
def test_sync_killed_at_random_moments_loses_little_and_ends_with_the_right_bytes(
    downloads: Downloads, tmp_path: Path, seed: int
) -> None:
    data = downloads.serve(num_bytes=SIZE)
    downloads.source.behave = lambda _: Behaviour(bytes_per_second=10e6)
    config = downloads.write_config(tmp_path, [downloads.model(data)])
    moments = random.Random(seed)
    for number in range(NUM_KILLS):
        before = _claimed_blocks(downloads)
        first_request, sent_before = len(downloads.source.requests), downloads.source.sent_bytes
        until = sent_before + moments.randrange(1, 5 * MIB)
        with start_command(config) as process:
            wait_for(lambda until=until: downloads.source.sent_bytes >= until, f"bytes before kill {number}")  # type: ignore[misc]
            assert process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=10)
        requests = downloads.source.requests[first_request:]
        claimed = _claimed_blocks(downloads)
        assert claimed >= before, "a kill must not lose a block"
        assert _asked_blocks(requests).isdisjoint(before), "a block that was there was asked for again"
        assert len(_asked_blocks(requests) - claimed) * BLOCK_BYTES <= MAX_OUTSTANDING_BYTES
    downloads.source.behave = lambda _: Behaviour()
    with start_command(config) as process:
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert downloads.published() == data
    num_probes = NUM_KILLS + 1
    assert downloads.source.sent_bytes <= SIZE + NUM_KILLS * MAX_OUTSTANDING_BYTES + num_probes
    assert not downloads.partials.exists()


def _silent(downloads: Downloads) -> Behaviour:
    downloads.source.released.wait(60)
    return Behaviour()


def _is_probe(request: Request) -> bool:
    return request.range == (0, 1)


STATES = [
    "while bytes come",
    "while bodies stall",
    "while the probe is not answered",
    "while no body begins",
    "while waiting to try again",
]


def _behaviour(state: str, downloads: Downloads, request: Request) -> Behaviour:
    if state == "while the probe is not answered":
        return _silent(downloads)
    if _is_probe(request):
        return Behaviour()
    if state == "while bytes come":
        return Behaviour(bytes_per_second=2e6)
    if state == "while bodies stall":
        return Behaviour(stall_after_bytes=1_500_000)
    if state == "while no body begins":
        return _silent(downloads)
    return Behaviour(status=503, headers={"Retry-After": "250"})


@pytest.mark.parametrize(("state", "number"), [*((state, signal.SIGTERM) for state in STATES), (STATES[0], signal.SIGINT)])
def test_sync_told_to_stop_exits_with_143_and_the_next_run_goes_on(
    downloads: Downloads, tmp_path: Path, state: str, number: signal.Signals
) -> None:
    data = downloads.serve(num_bytes=12 * MIB)
    config = downloads.write_config(tmp_path, [downloads.model(data)])
    (tmp_path / "termination").touch()
    downloads.source.behave = lambda request: _behaviour(state, downloads, request)
    with start_command(config) as process:
        wait_for(lambda: _has_come_to(state, downloads), f"a sync {state}")
        process.send_signal(number)
        output, _ = process.communicate(timeout=10)
    assert process.returncode == 143, output
    assert "Traceback" not in output
    assert "stopped" in (tmp_path / "termination").read_text()
    claimed = _claimed_blocks(downloads)
    assert claimed or "bodies" not in state
    downloads.source.behave = lambda _: Behaviour()
    downloads.source.requests.clear()
    with start_command(config) as process:
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert downloads.published() == data
    assert _asked_blocks(downloads.source.requests).isdisjoint(claimed)


def _has_come_to(state: str, downloads: Downloads) -> bool:
    if state in ("while bytes come", "while bodies stall"):
        return len(_claimed_blocks(downloads)) >= 2
    return len(downloads.source.requests) >= (1 if "probe" in state else 2)


@pytest.fixture
def two_processes(downloads: Downloads, tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def test_sync_of_two_processes_at_once_publishes_the_right_bytes(
    downloads: Downloads, tmp_path: Path, two_processes: list[subprocess.Popen[str]]
) -> None:
    data = downloads.serve(num_bytes=12 * MIB)
    downloads.source.behave = lambda _: Behaviour(bytes_per_second=8e6)
    config = downloads.write_config(tmp_path, [downloads.model(data)])
    two_processes.extend(start_command(config) for _ in range(2))
    outputs = [process.communicate(timeout=30)[0] for process in two_processes]
    assert [process.returncode for process in two_processes] == [0, 0], outputs
    assert downloads.published() == data
    assert not (downloads.root / ".nlocalmodels" / "replaced").exists()
    assert list((downloads.root / ".nlocalmodels" / "partials").iterdir()) == []
