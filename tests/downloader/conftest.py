from __future__ import annotations

import logging
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nlocalmodels_downloader import retry
from nlocalmodels_downloader.cli import main
from nlocalmodels_downloader.config import Model
from nlocalmodels_downloader.settings import Settings
from support.downloads import Downloads
from support.model_source import ModelSource


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keeps proxies, tokens and the CLI's log handlers of one test out of the others."""
    for name in ("HF_TOKEN", "HF_ENDPOINT", "http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    yield
    package = logging.getLogger("nlocalmodels_downloader")
    package.handlers.clear()
    package.propagate = True


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "MAX_WAIT_SECONDS", 0.02)
    monkeypatch.setattr(retry, "MAX_RETRY_AFTER_SECONDS", 0.05)


@pytest.fixture
def source() -> Iterator[ModelSource]:
    with ModelSource().running() as running:
        yield running


@pytest.fixture
def other_source() -> Iterator[ModelSource]:
    """Another origin."""
    with ModelSource().running() as running:
        yield running


@pytest.fixture
def settings() -> Settings:
    return Settings(owner="pod", num_attempts=4, connect_timeout_seconds=5.0, stall_seconds=20.0)


@pytest.fixture
def downloads(source: ModelSource, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Downloads:
    caplog.set_level(logging.INFO, "nlocalmodels_downloader")
    return Downloads(source, tmp_path / "models", settings)


@pytest.fixture
def hasty_downloads(downloads: Downloads) -> Downloads:
    """Breaks a silent connection off soon."""
    return replace(downloads, settings=replace(downloads.settings, stall_seconds=0.3))


@pytest.fixture
def small_mount(tmp_path: Path) -> Iterator[Path]:
    """An 8 MiB filesystem of its own, where the tests may mount."""
    folder = tmp_path / "mount"
    folder.mkdir()
    mounting = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], check=False, capture_output=True)
    if mounting.returncode:
        pytest.skip("mounting a filesystem is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def memory_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder where waiting for the disk costs nothing: SIGKILL takes nothing from the kernel, wherever it keeps it."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path) as folder:
        yield Path(folder)


@pytest.fixture
def termination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that a kubelet mounts, empty."""
    path = tmp_path / "termination"
    path.touch()
    monkeypatch.setenv("TERMINATION_MESSAGE_PATH", str(path))
    return path


@pytest.fixture
def run(
    downloads: Downloads, tmp_path: Path, termination: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., int]]:
    """Runs a command in this process, its options before the models."""
    monkeypatch.setenv("DOWNLOAD_ATTEMPTS", "2")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def call(command: str, *arguments: str | Model) -> int:
        options = [argument for argument in arguments if isinstance(argument, str)]
        models = [argument for argument in arguments if isinstance(argument, Model)]
        return main([command, "--config", str(downloads.write_config(tmp_path, models)), *options])

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)
