"""Unfinished downloads that nobody goes on with, and above all those that somebody may."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from nlocalmodels_downloader.config import Config, Model
from nlocalmodels_downloader.forgotten import FORGOTTEN_AFTER_SECONDS, discard_forgotten, find_forgotten
from nlocalmodels_downloader.prune import plan_prune
from nlocalmodels_downloader.sync import Synchronizer
from nlocalmodels_downloader.volume import Volume
from nlocalmodels_downloader.workspaces import Workspaces
from support.downloads import Downloads

KEY, OTHER = "a" * 64, "b" * 64
SIZE = 64 * 1024


class Left:
    """What a dead pod has left of a file, its lease among it, all from long ago."""

    def __init__(self, root: Path, workspace: str = "dead.0") -> None:
        self.root = root
        self.state = root / ".nlocalmodels"
        self.workspace = self.state / "partials" / workspace
        self.data = self.workspace / f"{KEY}.data"
        self.journal = self.workspace / f"{KEY}.journal"
        self.lease = self.state / "leases" / f"{KEY}.7"
        for folder in (self.workspace, self.lease.parent):
            folder.mkdir(parents=True)
        (self.workspace / "lock").touch()
        self.data.write_bytes(bytes(SIZE))
        self.journal.write_text("{}\n")
        self.lease.write_text(json.dumps({"holder": workspace, "token": "t", "nonce": 3, "presentBytes": SIZE}))
        self.age(self.data, self.journal, self.lease)

    @staticmethod
    def age(*paths: Path, seconds: float = FORGOTTEN_AFTER_SECONDS + 3600) -> None:
        for path in paths:
            os.utime(path, (time.time() - seconds,) * 2)

    def discard(self, wanted: str = OTHER) -> int:
        """Returns the bytes freed."""
        volume = Volume(self.root, "pod")
        return discard_forgotten(volume, find_forgotten(volume, {wanted}))


@pytest.fixture
def left(tmp_path: Path) -> Left:
    return Left(tmp_path)


def test_what_a_dead_pod_left_of_a_file_that_is_not_declared_goes_with_its_lease(left: Left) -> None:
    assert left.discard() == SIZE
    assert not left.workspace.exists()
    assert not left.lease.exists()
    assert left.discard() == 0


def test_what_a_declared_file_can_take_over_stays(left: Left) -> None:
    assert left.discard(wanted=KEY) == 0
    assert left.data.exists()


@pytest.mark.parametrize("part", ["data", "journal", "lease"])
def test_what_somebody_wrote_to_within_a_week_stays(left: Left, part: str) -> None:
    Left.age(getattr(left, part), seconds=FORGOTTEN_AFTER_SECONDS - 3600)
    assert left.discard() == 0
    assert left.data.exists()
    assert left.lease.exists()


def test_what_a_live_process_has_stays_however_long_it_waits(tmp_path: Path) -> None:
    live = Workspaces(tmp_path / ".nlocalmodels", "live")
    left = Left(tmp_path, "other.0")
    own = live.claim()
    for path in (left.data, left.journal):
        path.rename(own / path.name)
    assert left.discard() == 0
    assert (own / left.data.name).exists()
    live.close()
    assert left.discard() == SIZE


def test_what_comes_to_life_between_plan_and_removal_stays(left: Left) -> None:
    volume = Volume(left.root, "pod")
    found = find_forgotten(volume, ())
    revived = Workspaces(left.state, "dead")
    assert revived.claim() == left.workspace
    assert discard_forgotten(volume, found) == 0
    assert left.data.exists()


@pytest.mark.parametrize("name", ["notes.txt", "m.gguf", f"{KEY[:40]}.data", f"{OTHER.upper()}.data"])
def test_other_files_in_the_folder_stay(left: Left, name: str) -> None:
    mine = left.workspace / name
    mine.write_text("mine")
    Left.age(mine)
    assert left.discard() == SIZE
    assert mine.read_text() == "mine"


def test_a_sync_that_prunes_removes_it_and_one_that_does_not_leaves_it(downloads: Downloads) -> None:
    left = Left(downloads.root)
    data = downloads.serve()

    def sync(model: Model, keep_sets: int | None) -> None:
        config = Config(downloads.root, (model,), prune_keep_sets=keep_sets)
        assert Synchronizer(config, downloads.settings, downloads.stop).run() == []

    sync(downloads.model(data), None)
    assert left.data.exists()
    sync(downloads.model(data), 2)
    assert not left.workspace.exists()
    assert downloads.published() == data


def test_the_plan_says_what_goes_and_changes_nothing(left: Left) -> None:
    plan = plan_prune(left.root, 1, "", {"m.gguf"})
    assert str(plan).splitlines() == [
        "to prune: what dead.0 had of aaaaaaaaaaaa… (64.0 KiB)",
        "to prune: no set, 64.0 KiB in all",
    ]
    assert left.data.exists()
    assert plan_prune(left.root, 1, "", {"m.gguf"}, {KEY}).partials == ()
