"""What is removed of killed processes, and what is left to live ones."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nlocalmodels_downloader.lease import Lease
from nlocalmodels_downloader.leftovers import discard_leftovers
from nlocalmodels_downloader.volume import Volume, write_durably

KEY, OTHER = "ab" * 32, "cd" * 32


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(tmp_path, "pod")


def _leased(volume: Volume, key: str, holder: str) -> Path:
    assert Lease(volume.leases, key, holder).try_acquire()
    return volume.leases / f"{key}.1"


def test_the_lease_of_a_live_process_stays(volume: Volume) -> None:
    live = Volume(volume.root, "live")
    path = _leased(volume, KEY, live.workspace().name)
    discard_leftovers(volume, {KEY})
    assert path.exists()
    live.close()
    discard_leftovers(volume, {KEY})
    assert not path.exists()


def test_the_lease_of_a_dead_process_on_a_file_still_to_come_stays(volume: Volume) -> None:
    path = _leased(volume, OTHER, "dead.0")
    discard_leftovers(volume, {KEY})
    assert path.exists()


def test_every_lease_of_a_former_life_goes(volume: Volume) -> None:
    path = _leased(volume, OTHER, volume.workspace().name)
    discard_leftovers(volume, {KEY})
    assert not path.exists()


@pytest.mark.parametrize("content", ["", '{"holder": 1}', "[]"])
def test_what_was_never_written_to_its_end_goes(volume: Volume, content: str) -> None:
    volume.leases.mkdir(parents=True)
    torn = volume.leases / f".{KEY}.{'0' * 32}.new"
    torn.write_text(content)
    discard_leftovers(volume, {KEY})
    assert not torn.exists()


def test_a_file_about_to_be_renamed_that_another_process_removes_is_written_again(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace
    removed: list[Path] = []

    def replace_after_another_removed_it(source: Path, target: Path) -> None:
        if not removed:
            discard_leftovers(Volume(volume.root, "another"), set())
            removed.append(source)
            assert not source.exists()
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_after_another_removed_it)
    write_durably(volume.state / "sets" / "x.json", b"whole")
    assert [path.name for path in (volume.state / "sets").iterdir()] == ["x.json"]
    assert (volume.state / "sets" / "x.json").read_bytes() == b"whole"
    assert removed
