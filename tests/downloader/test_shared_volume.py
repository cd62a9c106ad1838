"""Eight pods on one volume, killed and started again at random: with locks that work, that lie, and without hard links."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nlocalmodels_downloader.manifest import ManifestEntry, set_id
from nlocalmodels_downloader.segments import BLOCK_BYTES, MAX_OUTSTANDING_BYTES
from nlocalmodels_downloader.volume import Verified, Volume
from support import killing
from support.downloads import MIB, Downloads, sha256, start_command
from support.faulty_downloader import Faults
from support.model_source import Behaviour, Request
from support.pods import Pods

STATE = ".nlocalmodels"
SIZES = {"a": 10 * MIB + 3, "b": 6 * MIB + 11}
NUM_PODS = 8


@pytest.fixture
def shared(downloads: Downloads, memory_folder: Path) -> Downloads:
    downloads.source.behave = lambda _: Behaviour(bytes_per_second=4e6)
    return replace(downloads, root=memory_folder / "models")


def _run(
    shared: Downloads, tmp_path: Path, faults: Faults, environ: dict[str, str], num_kills: int
) -> tuple[Pods, dict[str, bytes]]:
    data = {name: shared.serve(name, size, seed=size) for name, size in SIZES.items()}
    config = shared.write_config(tmp_path, [shared.model(data[name], name) for name in data])
    with Pods(shared, config, faults, environ, seed=1) as pods:
        for number in range(NUM_PODS):
            pods.start(f"pod{number}")
        pods.kill_at_random(num_kills, sum(SIZES.values()), 120)
    assert pods.kills
    assert pods.failures == []
    assert {name: shared.published(name) for name in data} == data
    with start_command(config, {"POD_UID": "last"}) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    entries = [ManifestEntry(name, f"{name}.gguf", sha256(data[name]), len(data[name])) for name in data]
    assert killing.listing(shared.root) == {
        *(f"{name}.gguf" for name in data),
        *(f"{STATE}/verified/{name}.gguf.json" for name in data),
        f"{STATE}/publish.lock",
        f"{STATE}/sets/{set_id(entries)}.json",
    }
    return pods, data


def test_pods_share_one_download_however_often_some_are_killed(shared: Downloads, tmp_path: Path) -> None:
    pods, data = _run(shared, tmp_path, Faults(str(shared.root)), {"DOWNLOAD_LEASE_SECONDS": "5"}, 3)
    assert re.search(r"pod\dx*\.0 is fetching it and has .*; waiting for it", pods.output)
    for kill in pods.kills:
        for name in data:
            asked = killing.asked_blocks(shared.source.requests[kill.num_requests :], f"/{name}.gguf")
            assert asked.isdisjoint(kill.claimed.get(sha256(data[name]), set())), "a recorded block was fetched again"
    twice = sum(_asked_times(shared, name) - -(-SIZES[name] // BLOCK_BYTES) for name in data)
    assert twice * BLOCK_BYTES <= len(pods.kills) * MAX_OUTSTANDING_BYTES


def _asked_times(shared: Downloads, name: str) -> int:
    requests = [request for request in shared.source.requests if request.path == f"/{name}.gguf"]
    return sum(len(killing.asked_blocks([request], f"/{name}.gguf")) for request in requests)


@pytest.mark.parametrize("no_links", [False, True], ids=["locks lie", "locks lie and there are no links"])
def test_pods_end_with_the_right_bytes_where(shared: Downloads, tmp_path: Path, no_links: bool) -> None:
    faults = Faults(str(shared.root), lying_flock=True, no_links=no_links)
    _run(shared, tmp_path, faults, {"DOWNLOAD_LEASE_SECONDS": "0.5"}, 6)


def _once(shared: Downloads, call: Callable[[], None]) -> None:
    """Calls when the first bytes of a body are asked for."""
    is_over = threading.Event()

    def behave(request: Request) -> Behaviour:
        if request.range != (0, 1) and not is_over.is_set():
            is_over.set()
            call()
        return Behaviour()

    shared.source.behave = behave


def _take_away(shared: Downloads) -> None:
    """Does what an adopter does that takes this process for dead."""
    for path in shared.partials.iterdir():
        path.unlink()
    shared.partials.rmdir()


def test_what_another_process_took_away_is_fetched_once_more(shared: Downloads) -> None:
    data = shared.serve()
    _once(shared, lambda: _take_away(shared))
    assert shared.sync(shared.model(data)) == []
    assert shared.published() == data
    assert list((shared.root / STATE / "partials").iterdir()) == []


def test_what_another_process_published_and_took_away_is_there(shared: Downloads) -> None:
    data = shared.serve()

    def publish() -> None:
        fresh = shared.root / "fresh"
        fresh.write_bytes(data)
        Volume(shared.root, "another").publish(fresh, "m.gguf", Verified(sha256(data), "another"))
        _take_away(shared)

    _once(shared, publish)
    assert shared.sync(shared.model(data)) == []
    assert shared.published() == data
    assert len(killing.asked_blocks(shared.source.requests, "/m.gguf")) == _asked_times(shared, "m"), "fetched once"
