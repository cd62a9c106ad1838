"""Waiting for another pod's sync, on volumes that may only be read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from nlocalmodels_downloader import wait
from nlocalmodels_downloader.config import Config, Model
from nlocalmodels_downloader.errors import ExhaustedError, StoppedError
from nlocalmodels_downloader.manifest import ManifestEntry, Shard, write_manifest
from nlocalmodels_downloader.sources import parse_source
from nlocalmodels_downloader.wait import missing_files, wait_for_set
from support.downloads import Downloads, sha256, wait_for

DATA = b"GGUF and more"
MODEL = Model("m", "m.gguf", parse_source("https://example.org/m.gguf"), sha256(DATA), len(DATA))
ENTRY = ManifestEntry("m", "m.gguf", sha256(DATA), len(DATA))


@pytest.fixture(autouse=True)
def _short_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "POLL_SECONDS", 0.01)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(tmp_path / "models", (MODEL,))


def _fill(config: Config, data: bytes = DATA, *entries: ManifestEntry) -> None:
    config.model_path.mkdir(exist_ok=True)
    (config.model_path / "m.gguf").write_bytes(data)
    if entries:
        write_manifest(config.model_path / ".nlocalmodels" / "sets", entries)


def _missing(config: Config) -> list[str]:
    with pytest.raises(ExhaustedError) as caught:
        wait_for_set(lambda: config, threading.Event(), 0.0, lambda _: None)
    missing = missing_files(config)
    assert all(line in str(caught.value) for line in missing)
    return missing


def test_names_each_file_that_is_not_as_declared(config: Config) -> None:
    assert _missing(config) == ["m.gguf is not there"]
    _fill(config, b"GGUF")
    assert _missing(config) == ["m.gguf has 4 of 13 bytes"]
    _fill(config)
    assert _missing(config) == ["m.gguf is there, but no complete set names it with its digest"]
    _fill(config, DATA, replace(ENTRY, sha256="ab" * 32))
    assert _missing(config) == ["m.gguf is there, but no complete set names it with its digest"]
    _fill(config, b"GGUF", ENTRY)
    assert _missing(config) == ["m.gguf has 4 of 13 bytes"]
    _fill(config, DATA, ENTRY)
    wait_for_set(lambda: config, threading.Event(), 0.0, lambda _: pytest.fail("nothing is missing"))


def test_a_model_without_a_digest_needs_a_set_that_names_its_file(config: Config) -> None:
    config = replace(config, models=(replace(MODEL, sha256=None, size_bytes=None),))
    _fill(config)
    assert _missing(config) == ["m.gguf is there, but no complete set names it with its digest"]
    _fill(config, b"GGUF", ENTRY)
    assert _missing(config) == ["m.gguf has 4 of 13 bytes"]
    _fill(config, DATA, ENTRY)
    assert missing_files(config) == []


def test_two_sets_that_name_a_file_each_are_not_one_that_names_both(config: Config) -> None:
    other = replace(MODEL, id="other", file="other.gguf")
    config = replace(config, models=(MODEL, other))
    _fill(config, DATA, ENTRY)
    (config.model_path / "other.gguf").write_bytes(DATA)
    both = replace(ENTRY, id="other", file="other.gguf")
    _fill(config, DATA, both)
    assert len(_missing(config)) == 1
    _fill(config, DATA, ENTRY, both)
    assert missing_files(config) == []


def test_shards_are_waited_for_and_must_be_named_too(config: Config) -> None:
    shard = replace(MODEL, file="m-2.gguf", sha256="ab" * 32, size_bytes=4)
    config = replace(config, models=(replace(MODEL, shards=(shard,)),))
    _fill(config, DATA, replace(ENTRY, shards=(Shard("m-2.gguf", "ac" * 32, 4),)))
    (config.model_path / "m-2.gguf").write_bytes(b"GGUF")
    assert _missing(config) == ["m-2.gguf is there, but no complete set names it with its digest"]
    (config.model_path / "m-2.gguf").unlink()
    _fill(config, DATA, replace(ENTRY, shards=(Shard("m-2.gguf", "ab" * 32, 4),)))
    assert _missing(config) == ["m-2.gguf is not there"]
    (config.model_path / "m-2.gguf").write_bytes(b"GGU")
    assert _missing(config) == ["m-2.gguf has 3 of 4 bytes"]
    (config.model_path / "m-2.gguf").write_bytes(b"GGUF")
    assert missing_files(config) == []


def test_a_damaged_manifest_vouches_for_nothing(config: Config) -> None:
    _fill(config, DATA, ENTRY)
    [path] = (config.model_path / ".nlocalmodels" / "sets").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:20])
    assert len(_missing(config)) == 1
    path.write_bytes(whole)
    assert missing_files(config) == []


def test_nothing_declared_is_waited_for_in_no_case(config: Config) -> None:
    config = replace(config, models=())
    wait_for_set(lambda: config, threading.Event(), None, lambda _: pytest.fail("nothing is missing"))
    assert not config.model_path.exists()
    _fill(config, DATA, ENTRY)
    wait_for_set(lambda: config, threading.Event(), None, lambda _: pytest.fail("nothing is missing"))


def test_returns_once_another_has_filled_the_volume(config: Config) -> None:
    reports: list[Sequence[str]] = []
    waiting = threading.Thread(target=wait_for_set, args=(lambda: config, threading.Event(), 30.0, reports.append))
    waiting.start()
    wait_for(lambda: bool(reports), "a report")
    _fill(config)
    _fill(config, DATA, ENTRY)
    waiting.join(20)
    assert not waiting.is_alive()
    assert reports == [["m.gguf is not there"]]


def test_a_list_that_is_corrected_ends_the_wait(config: Config, tmp_path: Path) -> None:
    """As after a rollback, while a pod of the set that never came waits on."""
    _fill(config, DATA, ENTRY)
    path = tmp_path / "downloads.yaml"

    def declare(name: str) -> None:
        source = f"https://example.org/{name}"
        models = [{"id": "m", "file": name, "source": source, "sha256": sha256(DATA), "sizeBytes": len(DATA)}]
        path.with_name("new").write_text(yaml.safe_dump({"modelPath": str(config.model_path), "models": models}))
        path.with_name("new").rename(path)

    declare("never.gguf")
    command = [sys.executable, "-m", "nlocalmodels_downloader", "--json", "wait", "--config", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"event": "waiting", "missing": ["never.gguf is not there"]}
        declare("m.gguf")
        assert json.loads(process.stdout.readline()) == {"event": "ready", "models": ["m"]}
    assert process.returncode == 0


def test_reports_again_after_a_while(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "REPORT_SECONDS", 0.0)
    stop = threading.Event()
    reports: list[Sequence[str]] = []

    def report(missing: Sequence[str]) -> None:
        reports.append(missing)
        if len(reports) == 3:
            stop.set()

    with pytest.raises(StoppedError):
        wait_for_set(lambda: config, stop, None, report)
    assert len(reports) == 3


def test_writes_nothing(config: Config) -> None:
    _missing(config)
    assert not config.model_path.exists()
    _fill(config, DATA, ENTRY)
    names = sorted(os.walk(config.model_path))
    wait_for_set(lambda: config, threading.Event(), None, lambda _: None)
    assert sorted(os.walk(config.model_path)) == names


def test_works_on_a_read_only_mount(config: Config, small_mount: Path) -> None:
    config = replace(config, model_path=small_mount)
    _fill(config, DATA, ENTRY)
    subprocess.run(["mount", "-o", "remount,ro", str(small_mount)], check=True)
    wait_for_set(lambda: config, threading.Event(), 0.0, lambda _: pytest.fail("nothing is missing"))


def test_a_real_sync_ends_the_wait(downloads: Downloads) -> None:
    model = downloads.model(downloads.serve(num_bytes=5000), size_bytes=5000)
    unpinned = replace(model, sha256=None, size_bytes=None)
    assert missing_files(Config(downloads.root, (model,))) == ["m.gguf is not there"]
    assert downloads.sync(model) == []
    assert missing_files(Config(downloads.root, (model,))) == []
    assert missing_files(Config(downloads.root, (unpinned,))) == []
