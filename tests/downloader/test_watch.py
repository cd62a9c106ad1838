"""A list that changes under the sidecar, and what it does then."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from nlocalmodels_downloader import watch as watch_module
from nlocalmodels_downloader.config import Config
from nlocalmodels_downloader.errors import (
    ConfigError,
    CorruptError,
    DeniedError,
    DownloaderError,
    ExhaustedError,
    GoneError,
    RefusedError,
    SpaceError,
    StoppedError,
)
from nlocalmodels_downloader.sync import Failure
from nlocalmodels_downloader.watch import retry_seconds, watch
from support.downloads import wait_for


def _list(*names: str) -> str:
    models = [{"id": name, "file": f"{name}.gguf", "source": f"https://example.org/{name}.gguf"} for name in names]
    return yaml.safe_dump({"modelPath": "/models", "models": models})


class Watched:
    """A watch in a thread of its own, whose syncs only note what they were asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stop = threading.Event()
        self.syncs: list[tuple[str, ...]] = []
        self.answer: Callable[[Config], list[Failure]] = lambda _: []
        self.ended_with: list[int] = []
        self._thread: threading.Thread | None = None

    def write(self, text: str) -> None:
        """Replaces the list at once, so that none but whole ones are ever read."""
        self.path.with_name("new").write_text(text)
        os.replace(self.path.with_name("new"), self.path)

    def start(self, recheck_seconds: float = 300.0) -> None:
        def run() -> None:
            self.ended_with.append(watch(self.path, self._sync, self.stop, 0.005, recheck_seconds))

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def _sync(self, config: Config) -> list[Failure]:
        self.syncs.append(tuple(model.id for model in config.models))
        return self.answer(config)

    def end(self) -> None:
        self.stop.set()
        if self._thread is not None:
            self._thread.join(20)
            assert not self._thread.is_alive()

    def wait_for_syncs(self, num_syncs: int) -> None:
        wait_for(lambda: len(self.syncs) >= num_syncs, f"{num_syncs} syncs")


@pytest.fixture
def watched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Watched]:
    caplog.set_level(logging.INFO, "nlocalmodels_downloader")
    running = Watched(tmp_path / "downloads.yaml")
    running.write(_list("a"))
    yield running
    running.end()


def test_syncs_at_once_and_when_the_content_changes(watched: Watched) -> None:
    watched.start()
    watched.wait_for_syncs(1)
    watched.write(_list("a", "b"))
    watched.wait_for_syncs(2)
    watched.end()
    assert watched.syncs == [("a",), ("a", "b")]
    assert watched.ended_with == [0]


def _mount_config_map(folder: Path, version: str, text: str) -> None:
    """Swaps the link as a kubelet does; the new file is older than the one before."""
    data = folder / f"..{version}"
    data.mkdir()
    (data / "downloads.yaml").write_text(text)
    os.utime(data / "downloads.yaml", (1, 1))
    (folder / "..data_tmp").symlink_to(data.name)
    os.replace(folder / "..data_tmp", folder / "..data")


def test_sees_a_swapped_config_map_whatever_its_times_are(tmp_path: Path, watched: Watched) -> None:
    folder = tmp_path / "mounted"
    folder.mkdir()
    _mount_config_map(folder, "first", _list("a"))
    watched.path = folder / "downloads.yaml"
    watched.path.symlink_to("..data/downloads.yaml")
    watched.start()
    watched.wait_for_syncs(1)
    _mount_config_map(folder, "second", _list("b"))
    watched.wait_for_syncs(2)
    assert watched.syncs == [("a",), ("b",)]


def test_a_file_that_is_only_touched_or_gone_for_a_moment_changes_nothing(watched: Watched) -> None:
    watched.start()
    watched.wait_for_syncs(1)
    os.utime(watched.path)
    watched.path.rename(watched.path.with_name("away"))
    watched.path.with_name("away").rename(watched.path)
    watched.write(_list("b"))
    watched.wait_for_syncs(2)
    watched.end()
    assert watched.syncs == [("a",), ("b",)]


def test_a_wrong_list_is_told_once_and_the_old_one_stays_in_force(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    watched.start(recheck_seconds=0.05)
    watched.wait_for_syncs(1)
    watched.write("models: 3")
    wait_for(lambda: any("stays in force" in message for message in caplog.messages), "the complaint")
    watched.wait_for_syncs(len(watched.syncs) + 2)
    assert set(watched.syncs) == {("a",)}
    assert len([message for message in caplog.messages if "stays in force" in message]) == 1
    watched.write(_list("b"))
    wait_for(lambda: ("b",) in watched.syncs, "a sync of the mended list")


def test_a_list_that_is_wrong_from_the_beginning_is_refused(watched: Watched) -> None:
    watched.write("models: 3")
    with pytest.raises(ConfigError):
        watch(watched.path, lambda _: [], threading.Event())
    watched.path.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        watch(watched.path, lambda _: [], threading.Event())


def test_rechecks_although_nothing_changes(watched: Watched) -> None:
    watched.start(recheck_seconds=0.01)
    watched.wait_for_syncs(3)
    assert set(watched.syncs) == {("a",)}


def _fail(config: Config) -> list[Failure]:
    return [Failure(config.models[0], ExhaustedError("no progress"))]


def _raise(config: Config) -> list[Failure]:
    raise SpaceError("the volume is full")


@pytest.mark.parametrize("answer", [_fail, _raise])
def test_a_failure_is_tried_again_and_a_success_ends_that(
    watched: Watched,
    answer: Callable[[Config], list[Failure]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(watch_module, "FIRST_RETRY_SECONDS", 0.01)
    watched.answer = lambda config: answer(config) if len(watched.syncs) < 3 else []
    watched.start()
    watched.wait_for_syncs(3)
    assert len([message for message in caplog.messages if "trying again" in message]) == 2


@pytest.mark.parametrize("error", [DeniedError, GoneError, CorruptError, RefusedError])
def test_what_another_attempt_would_say_again_waits_for_the_next_check(
    error: type[DownloaderError], watched: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch_module, "FIRST_RETRY_SECONDS", 0.01)
    watched.answer = lambda config: [Failure(config.models[0], error("as before"))]
    watched.start()
    wait_for(lambda: "the volume is not up to date; trying again in 300 s" in caplog.messages, "the wait")
    watched.write(_list("b"))
    watched.wait_for_syncs(2)
    watched.end()
    assert watched.syncs == [("a",), ("b",)]


def test_a_changed_list_does_not_wait_for_the_next_try(watched: Watched) -> None:
    watched.answer = _fail
    watched.start()
    watched.wait_for_syncs(1)
    watched.write(_list("b"))
    watched.wait_for_syncs(2)
    assert watched.syncs[1] == ("b",)


def test_waits_grow_up_to_five_minutes() -> None:
    waits = [retry_seconds(number) for number in range(1, 9)]
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300]
    assert retry_seconds(10**6) == 300


def test_ends_with_0_when_a_sync_is_stopped(watched: Watched) -> None:
    def be_stopped(_: Config) -> list[Failure]:
        watched.stop.set()
        raise StoppedError("stopped")

    watched.answer = be_stopped
    watched.start()
    watched.wait_for_syncs(1)
    watched.end()
    assert watched.ended_with == [0]
    assert len(watched.syncs) == 1
