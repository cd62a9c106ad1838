"""A file's content in a set that is still kept: going back to it fetches nothing."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from nlocalmodels_downloader.config import Config, Model
from nlocalmodels_downloader.former import Former
from nlocalmodels_downloader.plan import Action, plan_file
from nlocalmodels_downloader.sync import Synchronizer
from nlocalmodels_downloader.volume import Volume
from nlocalmodels_downloader.wait import missing_files
from support.downloads import Downloads, sha256


def content(downloads: Downloads, seed: int) -> tuple[bytes, Model]:
    """Serves a content under its own address, and declares it under the one name that all have."""
    data = downloads.serve(f"v{seed}", seed=seed)
    model = downloads.model(data, "m", source=f"{downloads.source.url}/v{seed}.gguf", size_bytes=len(data))
    return data, model


def sync(downloads: Downloads, model: Model, keep_sets: int | None = 2) -> None:
    config = Config(downloads.root, (model,), prune_keep_sets=keep_sets)
    assert Synchronizer(config, downloads.settings, threading.Event()).run() == []


def former(downloads: Downloads) -> set[str]:
    return set(Former(downloads.root / ".nlocalmodels").contents())


def test_going_back_fetches_nothing_and_forward_again_neither(downloads: Downloads) -> None:
    (first, old), (second, new) = content(downloads, 1), content(downloads, 2)
    sync(downloads, old)
    sync(downloads, new)
    assert former(downloads) == {sha256(first)}
    num_requests = len(downloads.source.requests)
    sync(downloads, old)
    assert downloads.published("m") == first
    assert former(downloads) == {sha256(second)}
    sync(downloads, new)
    assert downloads.published("m") == second
    assert len(downloads.source.requests) == num_requests


def test_content_goes_with_the_last_set_that_needs_it(downloads: Downloads) -> None:
    contents = [content(downloads, seed) for seed in (1, 2, 3)]
    for _, model in contents:
        sync(downloads, model)
    assert former(downloads) == {sha256(contents[1][0])}


def test_nothing_is_kept_where_one_set_stays(downloads: Downloads) -> None:
    for seed in (1, 2):
        sync(downloads, content(downloads, seed)[1], keep_sets=1)
    assert former(downloads) == set()


def test_damaged_content_is_dropped_and_fetched(downloads: Downloads) -> None:
    (first, old), (_, new) = content(downloads, 1), content(downloads, 2)
    sync(downloads, old)
    sync(downloads, new)
    kept = downloads.root / ".nlocalmodels" / "former" / sha256(first)
    kept.write_bytes(bytes(len(first)))
    sync(downloads, old)
    assert downloads.published("m") == first


def test_damaged_content_without_a_file_beside_it_is_fetched(downloads: Downloads) -> None:
    (first, old), (_, new) = content(downloads, 1), content(downloads, 2)
    sync(downloads, old)
    sync(downloads, new)
    (downloads.root / "m.gguf").unlink()
    (downloads.root / ".nlocalmodels" / "former" / sha256(first)).write_bytes(bytes(len(first)))
    sync(downloads, old)
    assert downloads.published("m") == first


def test_plan_counts_a_kept_content_as_there(downloads: Downloads) -> None:
    (_, old), (_, new) = content(downloads, 1), content(downloads, 2)
    sync(downloads, old)
    sync(downloads, new)
    assert plan_file(Volume(downloads.root, "pod"), old) is Action.VERIFY


def test_kept_contents_make_room_for_what_is_wanted_now(downloads: Downloads) -> None:
    (_, old), (_, new) = content(downloads, 1), content(downloads, 2)
    sync(downloads, old)
    sync(downloads, new)
    third, wanted = content(downloads, 3)
    # Room for two contents and what the downloader keeps beside them, not for a third.
    downloads.settings = replace(downloads.settings, volume_limit_bytes=len(third) * 2 + (1 << 20))
    sync(downloads, wanted)
    assert downloads.published("m") == third


def test_pods_that_wait_for_an_earlier_set_see_that_a_name_means_another_content(downloads: Downloads) -> None:
    """Both contents have one size, and the earlier set's manifest is still there."""
    (_, old), (_, new) = content(downloads, 1), content(downloads, 2)
    sync(downloads, old)
    sync(downloads, new)
    assert missing_files(Config(downloads.root, (new,))) == []
    assert len(missing_files(Config(downloads.root, (old,)))) == 1
    sync(downloads, old)
    assert missing_files(Config(downloads.root, (old,))) == []


def test_no_hard_links_no_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"x")

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("os.link", refuse)
    Former(tmp_path).keep(path, "0" * 64)
    assert Former(tmp_path).contents() == {}
