"""SIGKILL before, in and after each call that changes the volume, each time followed by a run that must put all right."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from nlocalmodels_downloader.manifest import ManifestEntry, set_id, write_manifest
from nlocalmodels_downloader.partial import Partial
from nlocalmodels_downloader.segments import BLOCK_BYTES
from nlocalmodels_downloader.volume import FOUND_ON_VOLUME, Verified, Volume
from support import killing
from support.downloads import HUB_COMMIT, MIB, Downloads, sha256
from support.faulty_downloader import Faults
from support.gguf_files import bulk_gguf
from support.killing import KILLED, Ended, Runner
from support.model_source import Behaviour

STATE = ".nlocalmodels"
FOREIGN = b"a person's own file"


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with killing.running(tmp_path_factory.mktemp("runs")) as running:
        yield running


@dataclass
class Scene:
    """A volume with all that a sync can meet: a person's file of a declared name, an old set, a dead pod's part of a file."""

    downloads: Downloads
    runner: Runner
    config: Path
    data: dict[str, bytes]
    old: bytes

    @property
    def root(self) -> Path:
        return self.downloads.root

    def prepare(self) -> None:
        volume = Volume(self.root, "former")
        volume.create()
        old = self.root / "old.new"
        old.write_bytes(self.old)
        volume.publish(old, "old.gguf", Verified(sha256(self.old), "https://example.org/old.gguf"))
        write_manifest(volume.state / "sets", [ManifestEntry("old", "old.gguf", sha256(self.old), len(self.old))])
        (self.root / "a.gguf").write_bytes(FOREIGN)
        dead = volume.workspace()
        with_b = Partial(dead, sha256(self.data["b"]), len(self.data["b"]), None)
        for block in (0, 1):
            piece = self.data["b"][block * BLOCK_BYTES :][:BLOCK_BYTES]
            with_b.write(block * BLOCK_BYTES, piece)
            with_b.complete(block, zlib.crc32(piece))
        with_b.close()
        volume.close()

    def sync(self, faults: Faults | None = None, environ: Mapping[str, str] | None = None) -> Ended:
        arguments = ["sync", "--config", str(self.config)]
        return self.runner.run(arguments, faults or Faults(str(self.root)), environ)

    def kill_and_go_on(self, faults: Faults, environ: Mapping[str, str], next_environ: Mapping[str, str]) -> bool:
        """Returns False when the run ended before the step. What the next run leaves is checked."""
        killed = self.sync(faults, environ)
        if killed.code == 0:
            return False
        assert killed.code == KILLED, killed.output
        at = f"{faults.moment} step {faults.kill_at}: {killed.steps[-1]}"
        claimed = killing.claimed_blocks(self.root)
        published = [name for name, data in self.data.items() if self.downloads.published(name) == data]
        self.downloads.source.requests.clear()
        ended = self.sync(environ={**environ, **next_environ})
        assert ended.code == 0, f"{at}\n{ended.output}"
        for name, data in self.data.items():
            asked = killing.asked_blocks(self.downloads.source.requests, f"/{name}.gguf")
            assert asked.isdisjoint(claimed.get(sha256(data), set())), f"{at}: {name} was fetched twice"
            assert not (asked and name in published), f"{at}: {name} was fetched although it was there"
        self.check(at)
        return True

    def check(self, at: str) -> None:
        entries = [ManifestEntry(name, f"{name}.gguf", sha256(data), len(data)) for name, data in self.data.items()]
        found = killing.listing(self.root)
        kept = {path for path in found if path.startswith(f"{STATE}/replaced/")}
        records = {f"{STATE}/verified/{name}.gguf.json" for name in self.data}
        models = {f"{name}.gguf" for name in self.data}
        assert found - kept == models | records | {f"{STATE}/publish.lock", f"{STATE}/sets/{set_id(entries)}.json"}, at
        assert [(self.root / path).read_bytes() for path in kept] == [FOREIGN], at
        for name, data in self.data.items():
            assert self.downloads.published(name) == data, at
            # What the downloader has fetched must not become a person's, which nobody ever prunes.
            recorded = Volume(self.root, "check").verified(f"{name}.gguf")
            assert recorded == Verified(sha256(data), f"{self.downloads.source.url}/{name}.gguf"), at


@pytest.fixture
def scene(downloads: Downloads, runner: Runner, tmp_path: Path, memory_folder: Path) -> Scene:
    downloads = replace(downloads, root=memory_folder / "models")
    data = {"a": downloads.serve("a", 2 * MIB + 17, seed=1), "b": downloads.serve("b", 2 * MIB + 5, seed=2)}
    config = downloads.write_config(tmp_path, [downloads.model(data[name], name) for name in data])
    config.write_text(config.read_text() + yaml.safe_dump({"prune": {"keepSets": 1}}))
    return Scene(downloads, runner, config, data, bulk_gguf(5000, seed=3))


def _fresh(scene: Scene, number: int, moment: str) -> Scene:
    downloads = replace(scene.downloads, root=scene.root.parent / f"models-{number}-{moment}")
    config = scene.config.with_name(f"downloads-{number}-{moment}.yaml")
    document = yaml.safe_load(scene.config.read_text())
    config.write_text(yaml.safe_dump({**document, "modelPath": str(downloads.root)}))
    fresh = replace(scene, downloads=downloads, config=config)
    fresh.prepare()
    return fresh


def _sweep(
    scene: Scene, step: str, moment: str, next_environ: Mapping[str, str], environ: Mapping[str, str] | None = None
) -> int:
    """Kills at each of the steps that match in turn. Returns how many there were."""
    problems: list[str] = []
    number = 0
    is_over = False
    while not is_over:
        number += 1
        fresh = _fresh(scene, number, moment)
        faults = Faults(str(fresh.root), step=step, kill_at=number, moment=moment)
        try:
            is_over = not fresh.kill_and_go_on(faults, environ or {}, next_environ)
        except AssertionError as error:
            problems.append(str(error))
        shutil.rmtree(fresh.root)
    assert not problems, "\n".join(problems)
    return number - 1


@pytest.mark.parametrize(
    ("step", "moment", "at_least"),
    [("", "before", 80), ("^open ", "after", 15), ("^p?write ", "half", 8)],
    ids=["before_each", "after_each_open", "half_way_of_each_write"],
)
def test_kill_at_every_step(scene: Scene, step: str, moment: str, at_least: int) -> None:
    assert _sweep(scene, step, moment, {}) >= at_least


@pytest.mark.skipif("SOAK" not in os.environ, reason="takes long; a part of `make soak-download`")
@pytest.mark.parametrize("environ", [{}, {"DOWNLOAD_DURABLE": "true"}], ids=["", "durable"])
@pytest.mark.parametrize("moment", ["before", "half"])
def test_kill_at_every_step_of_a_pod_that_never_returns(scene: Scene, moment: str, environ: dict[str, str]) -> None:
    assert _sweep(scene, "", moment, {"POD_UID": "another"}, environ) >= 80


# Each step by its name: how it looks below MODEL_PATH, which of those it is, and the moment.
PARTIAL = f"{STATE}/partials/pod.0"
NAMED = {
    "workspace_created": (f"mkdir {PARTIAL}", 1, "after"),
    "workspace_locked": (f"open {PARTIAL}/lock", 1, "after"),
    "lease_written_before_it_is_linked": (f"link {STATE}/leases/KEY.1", 1, "before"),
    "lease_created": (f"link {STATE}/leases/KEY.1", 1, "after"),
    "lease_written_before_it_is_renewed": (f"replace {STATE}/leases/KEY.1", 1, "before"),
    "lease_renewed": (f"replace {STATE}/leases/KEY.1", 1, "after"),
    "adoption_begun": (f"copy {PARTIAL}/KEY.data", 1, "before"),
    "adoption_half_way": (f"copy {PARTIAL}/KEY.data", 1, "after"),
    "adoption_before_its_journal": (f"copy {PARTIAL}/KEY.data", 2, "after"),
    "adoption_journal_written": (f"unlink {STATE}/partials/former.0/KEY.data", 1, "before"),
    "adopted_data_removed": (f"unlink {STATE}/partials/former.0/KEY.data", 1, "after"),
    "adopted_journal_removed": (f"unlink {STATE}/partials/former.0/KEY.journal", 1, "after"),
    "adopted_workspace_removed": (f"rmdir {STATE}/partials/former.0", 1, "after"),
    "data_created": (f"open {PARTIAL}/KEY.data", 1, "after"),
    "journal_written_before_it_is_renamed": (f"replace {PARTIAL}/KEY.journal", 1, "before"),
    "journal_created": (f"replace {PARTIAL}/KEY.journal", 1, "after"),
    "block_half_written": (f"pwrite {PARTIAL}/KEY.data", 3, "half"),
    "block_written_before_its_line": (f"write {PARTIAL}/KEY.journal", 2, "before"),
    "line_torn": (f"write {PARTIAL}/KEY.journal", 2, "half"),
    "line_appended": (f"write {PARTIAL}/KEY.journal", 2, "after"),
    "complete_before_the_digest": (f"write {PARTIAL}/KEY.journal", 4, "after"),
    "digest_computed_before_the_size_is_given": (f"ftruncate {PARTIAL}/KEY.data", 1, "before"),
    "size_given": (f"ftruncate {PARTIAL}/KEY.data", 1, "after"),
    "durable_data_synced": (f"fsync {PARTIAL}/KEY.data", 1, "after"),
    "publish_lock_created": (f"open {STATE}/publish.lock", 1, "after"),
    "foreign_file_kept": (f"link {STATE}/replaced/STAMP-a.gguf", 1, "after"),
    "chmod": (f"chmod {PARTIAL}/KEY.data", 1, "after"),
    "publication_announced": ("replace [ab].gguf", 1, "before"),
    "renamed_before_the_folder_is_synced": ("replace [ab].gguf", 1, "after"),
    "foreign_file_replaced": ("replace a.gguf", 1, "after"),
    "folder_synced_before_the_record": ("fsync .", 1, "after"),
    "record_written_before_it_is_renamed": (f"replace {STATE}/verified/a.gguf.json", 2, "before"),
    "record_renamed": (f"replace {STATE}/verified/a.gguf.json", 2, "after"),
    "partial_discarded": (f"unlink {PARTIAL}/KEY.journal", 1, "after"),
    "lease_not_released": (f"unlink {STATE}/leases/KEY.1", 1, "before"),
    "lease_released": (f"unlink {STATE}/leases/KEY.1", 1, "after"),
    "manifest_opened": (f"open {STATE}/sets/.SET.json.PID.new", 1, "after"),
    "manifest_written_before_it_is_renamed": (f"replace {STATE}/sets/SET.json", 1, "before"),
    "manifest_renamed": (f"replace {STATE}/sets/SET.json", 1, "after"),
    "pruned_file_removed": ("unlink old.gguf", 1, "after"),
    "pruned_record_removed": (f"unlink {STATE}/verified/old.gguf.json", 1, "after"),
    "pruned_manifest_removed": (f"unlink {STATE}/sets/SET.json", 1, "after"),
    "workspace_unlocked": (f"unlink {PARTIAL}/lock", 1, "after"),
    "workspace_removed": (f"rmdir {PARTIAL}", 1, "after"),
}


def _faults(root: Path, name: str) -> Faults:
    step, number, moment = NAMED[name]
    pattern = f"^{step}$".replace(".", r"\.").replace("STAMP", ".+")
    return Faults(str(root), step=pattern, kill_at=number, moment=moment)


@pytest.mark.parametrize("name", NAMED)
def test_kill(scene: Scene, name: str) -> None:
    scene.prepare()
    is_durable = {"DOWNLOAD_DURABLE": "true"} if "durable" in name else {}
    assert scene.kill_and_go_on(_faults(scene.root, name), is_durable, {}), "there was no such step"


# Where a dead pod's last state is what another one has to put right; it gets a new UID.
@pytest.mark.parametrize(
    "name",
    [
        "lease_created",
        "lease_written_before_it_is_renewed",
        "adoption_half_way",
        "adopted_data_removed",
        "line_appended",
        "complete_before_the_digest",
        "foreign_file_kept",
        "renamed_before_the_folder_is_synced",
        "record_written_before_it_is_renamed",
        "lease_not_released",
        "manifest_written_before_it_is_renamed",
        "pruned_file_removed",
    ],
)
def test_kill_of_a_pod_that_never_returns(scene: Scene, name: str) -> None:
    scene.prepare()
    assert scene.kill_and_go_on(_faults(scene.root, name), {}, {"POD_UID": "another"}), "there was no such step"


@pytest.mark.parametrize("name", ["foreign_file_replaced", "record_written_before_it_is_renamed"])
def test_kill_before_the_record_fetches_nothing_again_where_only_the_hub_knows_the_digest(scene: Scene, name: str) -> None:
    scene.downloads.source.files["/org/repo/resolve/" + HUB_COMMIT + "/a.gguf"] = scene.data["a"]
    headers = {"X-Linked-Etag": f'"{sha256(scene.data["a"])}"', "X-Repo-Commit": HUB_COMMIT}
    scene.downloads.source.behave = lambda _: Behaviour(headers=headers)
    model = {"id": "a", "file": "a.gguf", "source": f"hf://org/repo/a.gguf@{HUB_COMMIT}"}
    scene.config.write_text(yaml.safe_dump({"modelPath": str(scene.root), "models": [model]}))
    environ = {"HF_ENDPOINT": scene.downloads.source.url}
    faults = _faults(scene.root, name)
    assert scene.sync(faults, environ).code == KILLED
    assert scene.downloads.published("a") == scene.data["a"]
    scene.downloads.source.requests.clear()
    ended = scene.sync(environ=environ)
    assert ended.code == 0, ended.output
    assert scene.downloads.source.requests == [], "the file was there"
    recorded = Volume(scene.root, "check").verified("a.gguf")
    assert recorded == Verified(sha256(scene.data["a"]), model["source"])


RECEIVED = {"a": bulk_gguf(5000, seed=5), "b": bulk_gguf(6000, seed=6)}


def test_kill_at_every_step_of_receive(runner: Runner, memory_folder: Path) -> None:
    number, is_over = 0, False
    while not is_over:
        number += 1
        root = memory_folder / str(number)
        (root / STATE / "incoming").mkdir(parents=True)
        (root / "a.gguf").write_bytes(FOREIGN)
        for name, data in RECEIVED.items():
            (root / STATE / "incoming" / f"{name}.gguf").write_bytes(data)
        (root / STATE / "incoming" / "DONE").touch()
        command = ["receive", "--model-path", str(root), "--timeout-seconds", "0"]
        killed = runner.run(command, Faults(str(root), kill_at=number))
        is_over = killed.code == 0
        if not is_over:
            assert killed.code == KILLED, killed.output
            ended = runner.run(command, Faults(str(root)))
            assert ended.code == 0, f"{killed.steps[-1]}: {ended.output}"
        _check_received(root, killed.steps[-1])
    assert number >= 25


def _check_received(root: Path, at: str) -> None:
    found = killing.listing(root)
    kept = {path for path in found if path.startswith(f"{STATE}/replaced/")}
    records = {f"{STATE}/verified/{name}.gguf.json" for name in RECEIVED}
    assert found - kept == {*records, f"{STATE}/publish.lock", "a.gguf", "b.gguf"}, at
    assert [(root / path).read_bytes() for path in kept] == [FOREIGN], at
    for name, data in RECEIVED.items():
        assert (root / f"{name}.gguf").read_bytes() == data, at
        assert Volume(root, "check").recorded(f"{name}.gguf") == Verified(sha256(data), FOUND_ON_VOLUME), at
