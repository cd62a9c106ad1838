"""DOWNLOAD_OFFLINE: no socket for anything, and a reason for what is missing."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nlocalmodels_downloader.config import Model
from nlocalmodels_downloader.errors import RefusedError
from nlocalmodels_downloader.sources import parse_source
from support.downloads import HUB_COMMIT, Downloads

Run = Callable[..., int]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, downloads: Downloads) -> list[str]:
    """What was tried of the network from here on; all of it fails."""
    tried: list[str] = []

    def refuse(name: str) -> Callable[..., None]:
        def call(*arguments: object, **options: object) -> None:
            tried.append(f"{name}{arguments}{options}")
            raise OSError(101, "Network is unreachable")

        return call

    for name in ("socket", "create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse(name))
    return tried


@pytest.fixture
def offline(downloads: Downloads) -> Downloads:
    return replace(downloads, settings=replace(downloads.settings, is_offline=True))


def _local(downloads: Downloads, data: bytes, tmp_path: Path) -> str:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "m.gguf").write_bytes(data)
    return f"file://{tmp_path}/bundle/m.gguf"


@pytest.mark.parametrize("address", [None, "https://example.org/m.gguf", f"hf://org/repo/m.gguf@{HUB_COMMIT}"])
def test_a_missing_file_is_refused_with_its_name_the_setting_and_the_remedy(
    offline: Downloads, opened: list[str], address: str | None
) -> None:
    [error] = offline.sync(offline.model(offline.serve(), source=address))
    assert isinstance(error, RefusedError)
    for part in ("m.gguf is not on the volume", "DOWNLOAD_OFFLINE=true", "put the file there", "file:// mirror"):
        assert part in str(error)
    assert opened == []
    assert offline.source.requests == []


def test_a_file_that_is_there_is_fine(offline: Downloads, opened: list[str]) -> None:
    data = offline.serve(num_bytes=5000)
    offline.root.mkdir()
    (offline.root / "m.gguf").write_bytes(data)
    for _ in range(2):
        assert offline.sync(offline.model(data, source=f"hf://org/repo/m.gguf@{HUB_COMMIT}")) == []
    assert opened == []


def test_a_file_that_is_another_one_is_not_taken(offline: Downloads, opened: list[str]) -> None:
    offline.root.mkdir()
    (offline.root / "m.gguf").write_bytes(offline.serve("other", 5000, seed=1))
    [error] = offline.sync(offline.model(offline.serve(num_bytes=5000)))
    assert isinstance(error, RefusedError)
    assert "m.gguf is not on the volume as declared" in str(error)
    assert opened == []


def test_a_local_source_is_read(offline: Downloads, opened: list[str], tmp_path: Path) -> None:
    data = offline.serve(num_bytes=5000)
    assert offline.sync(offline.model(data, source=_local(offline, data, tmp_path))) == []
    assert offline.published() == data
    assert opened == []


def test_a_local_mirror_is_read_when_the_source_may_not_be_asked(offline: Downloads, opened: list[str], tmp_path: Path) -> None:
    data = offline.serve(num_bytes=5000)
    mirror = parse_source(_local(offline, data, tmp_path))
    assert offline.sync(replace(offline.model(data), mirrors=(mirror,))) == []
    assert offline.published() == data
    assert opened == []


def test_the_command_refuses_what_is_missing_and_keeps_what_is_there(
    run: Run, downloads: Downloads, termination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = downloads.serve(num_bytes=5000)
    there: Model = downloads.model(data)
    assert run("sync", there) == 0
    monkeypatch.setenv("DOWNLOAD_OFFLINE", "true")
    downloads.source.requests.clear()
    assert run("sync", there) == 0
    assert run("sync", there, downloads.model(data, "absent")) == 15
    assert "absent: absent.gguf is not on the volume as declared, and DOWNLOAD_OFFLINE=true" in termination.read_text()
    assert downloads.source.requests == []
