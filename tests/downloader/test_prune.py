"""What prune removes, and above all what it never touches."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nlocalmodels_downloader.config import Config, Model
from nlocalmodels_downloader.manifest import ManifestEntry, Shard, write_manifest
from nlocalmodels_downloader.prune import apply_prune, plan_prune
from nlocalmodels_downloader.sync import Synchronizer
from nlocalmodels_downloader.volume import FOUND_ON_VOLUME, Verified, Volume
from support.downloads import Downloads, sha256


class Models:
    """A volume on which sets become complete one after another."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.volume = Volume(root, "pod")
        self._num_sets = 0

    def publish(self, name: str, data: bytes | None = None, source: str = "https://example.org/m.gguf") -> ManifestEntry:
        data = data if data is not None else name.encode()
        file = f"{name}.gguf"
        fresh = self.root / "fresh"
        fresh.write_bytes(data)
        self.volume.publish(fresh, file, Verified(sha256(data), source))
        return ManifestEntry(name, file, sha256(data), len(data))

    def complete(self, *entries: ManifestEntry) -> str:
        """Writes the manifest, each a second after the one before."""
        identity = write_manifest(self.root / ".nlocalmodels" / "sets", entries)
        self._num_sets += 1
        os.utime(self.manifest(identity), (self._num_sets, self._num_sets))
        return identity

    def manifest(self, identity: str) -> Path:
        return self.root / ".nlocalmodels" / "sets" / f"{identity}.json"

    def files(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir() if path.name != ".nlocalmodels")

    def sets(self) -> set[str]:
        return {path.stem for path in (self.root / ".nlocalmodels" / "sets").iterdir()}

    def records(self) -> list[str]:
        return sorted(path.name for path in (self.root / ".nlocalmodels" / "verified").iterdir())

    def prune(self, keep_sets: int, current_set: str) -> list[str]:
        """Returns what was removed."""
        plan = plan_prune(self.root, keep_sets, current_set)
        before = self.files()
        planned = sorted(file.file for file in plan.files)
        assert apply_prune(plan) == plan.freed_bytes
        removed = sorted(set(before) - set(self.files()))
        assert removed == planned
        return removed


@pytest.fixture
def models(tmp_path: Path) -> Models:
    return Models(tmp_path)


def test_files_of_sets_that_are_not_kept_go_and_shared_ones_stay(models: Models) -> None:
    shared, old, middle, new = (models.publish(name) for name in ("shared", "old", "middle", "new"))
    oldest, former = models.complete(shared, old), models.complete(shared, middle)
    current = models.complete(shared, new)
    assert models.prune(3, current) == []
    assert models.sets() == {oldest, former, current}
    assert models.prune(2, current) == ["old.gguf"]
    assert models.sets() == {former, current}
    assert models.prune(1, current) == ["middle.gguf"]
    assert models.sets() == {current}
    assert models.files() == ["new.gguf", "shared.gguf"]
    assert models.records() == ["new.gguf.json", "shared.gguf.json"]


def test_after_a_rollback_the_set_rolled_back_to_is_the_newest(models: Models) -> None:
    first, second, third = (models.publish(name) for name in ("first", "second", "third"))
    back, _ = models.complete(first), models.complete(second)
    forward = models.complete(third)
    assert models.complete(first) == back
    assert models.prune(2, back) == ["second.gguf"]
    assert models.sets() == {back, forward}


def test_the_current_set_stays_even_if_its_manifest_is_the_oldest(models: Models) -> None:
    current = models.complete(models.publish("current"))
    models.complete(models.publish("other"))
    assert models.prune(1, current) == ["other.gguf"]


def test_every_shard_of_a_model_goes_and_shards_of_a_kept_one_stay(models: Models) -> None:
    def sharded(name: str) -> ManifestEntry:
        first, second = models.publish(f"{name}-1"), models.publish(f"{name}-2")
        return ManifestEntry(name, first.file, first.sha256, 1, (Shard(second.file, second.sha256, second.size_bytes),))

    models.complete(sharded("old"))
    current = models.complete(sharded("new"))
    assert models.prune(1, current) == ["old-1.gguf", "old-2.gguf"]


def _upload(models: Models, _: ManifestEntry) -> None:
    (models.root / "old.gguf").unlink()
    (models.root / "old.gguf").write_bytes(b"mine")


def _edit(models: Models, _: ManifestEntry) -> None:
    (models.root / "old.gguf").write_bytes(b"dlo")


def _forget(models: Models, _: ManifestEntry) -> None:
    (models.root / ".nlocalmodels" / "verified" / "old.gguf.json").unlink()


def _garble(models: Models, _: ManifestEntry) -> None:
    (models.root / ".nlocalmodels" / "verified" / "old.gguf.json").write_bytes(b"{")


def _link(models: Models, entry: ManifestEntry) -> None:
    (models.root / "old.gguf").rename(models.root / "elsewhere")
    (models.root / "old.gguf").symlink_to("elsewhere")
    models.volume.record_verified("old.gguf", Verified(entry.sha256, "https://example.org/m.gguf"))


def _found(models: Models, entry: ManifestEntry) -> None:
    models.volume.record_verified("old.gguf", Verified(entry.sha256, FOUND_ON_VOLUME))


def _publish_newer(models: Models, _: ManifestEntry) -> None:
    models.publish("old", b"of a set that is not complete yet")


@pytest.mark.parametrize("change", [_upload, _edit, _forget, _garble, _link, _found, _publish_newer])
def test_a_file_that_is_not_the_published_one_stays(models: Models, change: Callable[[Models, ManifestEntry], None]) -> None:
    old = models.publish("old")
    former, current = models.complete(old), models.complete(models.publish("new"))
    change(models, old)
    data = (models.root / "old.gguf").read_bytes()
    assert models.prune(1, current) == []
    assert (models.root / "old.gguf").read_bytes() == data
    assert former not in models.sets()


def test_files_that_no_manifest_names_stay(models: Models) -> None:
    models.publish("published")
    (models.root / "mine.gguf").write_bytes(b"mine")
    (models.root / "note.txt").write_text("mine")
    current = models.complete(models.publish("new"))
    assert models.prune(1, current) == []
    assert models.files() == ["mine.gguf", "new.gguf", "note.txt", "published.gguf"]


@pytest.mark.parametrize("damage", [b"", b"{", b'{"version": 2, "models": []}'])
def test_a_damaged_manifest_stops_it_altogether(models: Models, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    models.complete(models.publish("old"))
    kept = models.complete(models.publish("kept"))
    current = models.complete(models.publish("new"))
    models.manifest(kept).write_bytes(damage)
    before = models.sets()
    plan = plan_prune(models.root, 1, current)
    assert plan.problem
    assert kept in plan.problem
    assert str(plan).startswith("to prune: nothing (")
    assert (plan.files, plan.sets, apply_prune(plan)) == ((), (), 0)
    assert models.sets() == before
    assert any(kept in message and "nothing is removed" in message for message in caplog.messages)


def test_a_current_set_without_a_manifest_stops_it(models: Models) -> None:
    models.complete(models.publish("old"))
    assert plan_prune(models.root, 1, "0123456789ab").problem == "set 0123456789ab has no manifest"
    assert models.prune(1, "0123456789ab") == []


def test_declared_files_stay_where_the_set_has_no_manifest_yet(models: Models) -> None:
    models.complete(models.publish("shared"), models.publish("old"))
    plan = plan_prune(models.root, 1, "", {"shared.gguf", "new.gguf"})
    assert [file.file for file in plan.files] == ["old.gguf"]


def test_a_volume_without_anything_has_nothing_to_prune(tmp_path: Path) -> None:
    assert apply_prune(plan_prune(tmp_path / "absent", 1, "0123456789ab")) == 0
    assert not (tmp_path / "absent").exists()


def test_no_set_at_all_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give 1 or more"):
        plan_prune(tmp_path, 0, "0123456789ab")


def test_the_plan_changes_nothing_and_says_what_goes(models: Models) -> None:
    former = models.complete(models.publish("a", b"x" * 2048), models.publish("b", b"y" * 1024))
    current = models.complete(models.publish("new"))
    plan = plan_prune(models.root, 1, current)
    assert str(plan).splitlines() == [
        "to prune: a.gguf (2.0 KiB)",
        "to prune: b.gguf (1.0 KiB)",
        f"to prune: sets {former}, 3.0 KiB in all",
    ]
    assert plan.freed_bytes == 3072
    assert models.files() == ["a.gguf", "b.gguf", "new.gguf"]
    assert str(plan_prune(models.root, 2, current)) == "to prune: no set, 0 B in all"


def test_a_plan_that_the_volume_has_overtaken_removes_only_what_still_holds(models: Models) -> None:
    first, second = models.publish("first"), models.publish("second")
    models.complete(first)
    models.complete(second)
    current = models.complete(models.publish("new"))
    plan = plan_prune(models.root, 1, current)
    (models.root / "first.gguf").unlink()
    (models.root / "first.gguf").write_bytes(b"uploaded meanwhile")
    assert len(plan.files) == 2
    apply_prune(plan)
    assert models.files() == ["first.gguf", "new.gguf"]


def test_a_manifest_stays_as_long_as_a_file_of_it_cannot_be_removed(
    models: Models, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    former = models.complete(models.publish("stuck"), models.publish("old"))
    current = models.complete(models.publish("new"))
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == "stuck.gguf":
            raise PermissionError(1, "Operation not permitted")
        unlink(path, missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refuse)
        assert apply_prune(plan_prune(models.root, 1, current)) == 3
    assert models.sets() == {former, current}
    assert any("stuck.gguf stays (Operation not permitted)" in message for message in caplog.messages)
    assert models.prune(1, current) == ["stuck.gguf"]
    assert models.sets() == {current}


KILLED_AFTER = """
import os, sys
from pathlib import Path
from nlocalmodels_downloader.prune import apply_prune, plan_prune
unlink, num_left = Path.unlink, int(sys.argv[3])
def counted(path, missing_ok=False):
    global num_left
    if num_left == 0:
        os._exit(9)
    num_left -= 1
    unlink(path, missing_ok)
Path.unlink = counted
apply_prune(plan_prune(Path(sys.argv[1]), 1, sys.argv[2]))
"""


@pytest.mark.parametrize("num_unlinks", [0, 1, 2, 3, 4])
def test_killed_at_any_step_the_next_prune_completes_it(models: Models, num_unlinks: int) -> None:
    models.complete(models.publish("a"), models.publish("b"))
    current = models.complete(models.publish("new"))
    command = [sys.executable, "-c", KILLED_AFTER, str(models.root), current, str(num_unlinks)]
    assert subprocess.run(command, check=False).returncode == 9
    models.prune(1, current)
    assert models.files() == ["new.gguf"]
    assert models.sets() == {current}


def test_what_a_real_sync_published_is_pruned_and_what_was_uploaded_is_not(
    downloads: Downloads, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = downloads.serve("old", 5000, 1), downloads.serve("new", 5000, 2)
    assert downloads.sync(downloads.model(old, "old")) == []
    (downloads.root / "mine.gguf").write_bytes(old)
    assert downloads.sync(downloads.model(new, "new")) == []
    [current] = [
        path.stem for path in (downloads.root / ".nlocalmodels" / "sets").iterdir() if b"new.gguf" in path.read_bytes()
    ]
    caplog.set_level(logging.INFO, "nlocalmodels_downloader")
    assert apply_prune(plan_prune(downloads.root, 1, current)) == 5000
    assert "prune: old.gguf is removed, 4.9 KiB freed" in caplog.messages
    assert downloads.published("old") is None
    assert downloads.published("new") == new
    assert downloads.published("mine") == old
    assert downloads.sync(downloads.model(old, "old")) == []
    assert downloads.published("old") == old


def test_a_sync_prunes_when_its_set_is_complete_and_not_before(downloads: Downloads) -> None:
    old, new = downloads.serve("old", 5000, 1), downloads.serve("new", 5000, 2)
    assert downloads.sync(downloads.model(old, "old")) == []

    def sync(*models: Model) -> int:
        config = Config(downloads.root, models, prune_keep_sets=1)
        return len(Synchronizer(config, downloads.settings, downloads.stop).run())

    assert sync(downloads.model(new, "new"), downloads.model(b"", "absent")) == 1
    assert (downloads.published("old"), downloads.published("new")) == (old, new)
    assert sync(downloads.model(new, "new")) == 0
    assert (downloads.published("old"), downloads.published("new")) == (None, new)
