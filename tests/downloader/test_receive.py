"""Taking in what a person copies onto the volume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from nlocalmodels_downloader import receive
from nlocalmodels_downloader.cli import main
from nlocalmodels_downloader.config import Config
from nlocalmodels_downloader.errors import ExhaustedError, SpaceError, StoppedError
from nlocalmodels_downloader.receive import Received, Receiver
from nlocalmodels_downloader.settings import Settings
from nlocalmodels_downloader.sync import Synchronizer
from nlocalmodels_downloader.volume import FOUND_ON_VOLUME, Verified, Volume
from support.downloads import Downloads, sha256, wait_for
from support.gguf_files import bulk_gguf

MODEL = bulk_gguf(5000, seed=1)
OTHER = bulk_gguf(6000, seed=2)
RunReceive = Callable[..., int]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def receiver(root: Path, settings: Settings) -> Receiver:
    receiver = Receiver(root, settings, threading.Event())
    receiver.open()
    return receiver


@pytest.fixture
def run_receive(root: Path, termination: Path) -> Iterator[RunReceive]:
    """Runs the command in this process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield lambda *options: main(["receive", "--model-path", str(root), *options])
    for number, handler in handlers.items():
        signal.signal(number, handler)


def copy(root: Path, done: bool = True, **files: bytes) -> Path:
    """Copies files (name without .gguf to bytes) as `kubectl cp` does, and touches DONE. Returns the folder."""
    folder = root / ".nlocalmodels" / "incoming"
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / f"{name}.gguf").write_bytes(data)
    if done:
        (folder / "DONE").touch()
    return folder


def take_in(receiver: Receiver) -> dict[str, Received]:
    receiver.wait(0.0)
    return {received.file: received for received in receiver.take_in()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def started(root: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, ended with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "nlocalmodels_downloader", "receive", "--model-path", str(root), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_the_folder_is_there_to_be_written_by_the_group(receiver: Receiver, root: Path) -> None:
    assert receiver.incoming == root / ".nlocalmodels" / "incoming"
    assert receiver.incoming.stat().st_mode & 0o777 == 0o775
    receiver.open()


def test_good_files_are_published_with_their_size_and_digest(receiver: Receiver, root: Path) -> None:
    folder = copy(root, a=MODEL, b=OTHER)
    (folder / "a.gguf").chmod(0o600)
    assert take_in(receiver) == {
        "a.gguf": Received("a.gguf", 5000, sha256(MODEL)),
        "b.gguf": Received("b.gguf", 6000, sha256(OTHER)),
    }
    assert names(root) == [".nlocalmodels", "a.gguf", "b.gguf"]
    assert (root / "a.gguf").read_bytes() == MODEL
    assert (root / "a.gguf").stat().st_mode & 0o777 == 0o644
    assert names(folder) == []


def test_shards_are_files_like_others(receiver: Receiver, root: Path) -> None:
    shards = [f"big-0000{number}-of-00002" for number in (1, 2)]
    for shard, data in zip(shards, (MODEL, OTHER), strict=True):
        (copy(root) / f"{shard}.gguf").write_bytes(data)
    assert [received.problem for received in take_in(receiver).values()] == [None, None]
    assert [(root / f"{shard}.gguf").read_bytes() for shard in shards] == [MODEL, OTHER]


def test_broken_files_stay_with_a_reason_and_the_good_ones_are_published(receiver: Receiver, root: Path) -> None:
    folder = copy(root, good=MODEL, cut=MODEL[:3000], empty=b"", page=b"<html>")
    received = take_in(receiver)
    assert "cut.gguf is truncated" in str(received["cut.gguf"].problem)
    for name in ("empty.gguf", "page.gguf"):
        assert "does not start with the GGUF magic" in str(received[name].problem)
    assert names(root) == [".nlocalmodels", "good.gguf"]
    assert names(folder) == ["cut.gguf", "empty.gguf", "page.gguf"]
    copy(root, cut=MODEL)
    assert take_in(receiver)["cut.gguf"].problem is None


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "m.pb", "m.h5", "README", "m.gguf.part"])
def test_other_formats_are_refused_by_name(receiver: Receiver, root: Path, name: str) -> None:
    (copy(root) / name).write_bytes(MODEL)
    problem = take_in(receiver)[name].problem
    assert problem is not None
    assert "only GGUF is served; convert it to GGUF" in problem
    assert names(receiver.incoming) == [name]


@pytest.mark.parametrize("name", [".m.gguf", "a\nb.gguf", "x" * 200 + ".gguf", os.fsdecode(b"\xff.gguf")])
def test_names_that_nobody_could_use_are_refused(receiver: Receiver, root: Path, name: str) -> None:
    (copy(root) / name).write_bytes(MODEL)
    assert "rename it" in str(take_in(receiver)[name].problem)


def test_what_is_no_plain_file_is_refused(receiver: Receiver, root: Path, tmp_path: Path) -> None:
    folder = copy(root)
    (tmp_path / "secret.gguf").write_bytes(MODEL)
    (folder / "link.gguf").symlink_to(tmp_path / "secret.gguf")
    (folder / "folder.gguf").mkdir()
    os.mkfifo(folder / "pipe.gguf")
    assert {received.problem for received in take_in(receiver).values()} == {
        "no plain file; copy the files themselves, one by one."
    }
    assert names(root) == [".nlocalmodels"]


def test_a_persons_file_of_the_same_name_is_kept(receiver: Receiver, root: Path) -> None:
    (root / "m.gguf").write_bytes(b"theirs")
    copy(root, m=MODEL)
    assert take_in(receiver)["m.gguf"].problem is None
    copy(root, m=OTHER)
    assert take_in(receiver)["m.gguf"].problem is None
    assert (root / "m.gguf").read_bytes() == OTHER
    assert {path.read_bytes() for path in (root / ".nlocalmodels" / "replaced").iterdir()} == {b"theirs", MODEL}


def test_the_same_file_once_more_takes_no_more_room(receiver: Receiver, root: Path) -> None:
    for _ in range(2):
        folder = copy(root, m=MODEL)
        assert take_in(receiver)["m.gguf"] == Received("m.gguf", 5000, sha256(MODEL))
        assert names(folder) == []
    assert not (root / ".nlocalmodels" / "replaced").exists()


@pytest.mark.parametrize("is_pruned_by_hand", [True, False])
def test_a_file_that_a_set_declares_is_not_replaced(downloads: Downloads, is_pruned_by_hand: bool) -> None:
    data = downloads.serve()
    assert downloads.sync(downloads.model(data)) == []
    if is_pruned_by_hand:
        (downloads.root / "m.gguf").unlink()
    receiver = Receiver(downloads.root, downloads.settings, downloads.stop)
    receiver.open()
    folder = copy(downloads.root, m=MODEL, mine=MODEL)
    received = take_in(receiver)
    [path] = (downloads.root / ".nlocalmodels" / "sets").iterdir()
    expected = f"set {path.stem} declares a file of this name with sha256 {sha256(data)}; rename yours."
    assert received["m.gguf"].problem == expected
    assert received["mine.gguf"].problem is None
    assert downloads.published() == (None if is_pruned_by_hand else data)
    assert names(folder) == ["m.gguf"]


def test_a_shard_that_a_set_declares_is_not_replaced(downloads: Downloads) -> None:
    first, second = downloads.serve(), downloads.serve("m-2", 5000, 3)
    model = replace(downloads.model(first), shards=(downloads.model(second, "m-2"),))
    assert downloads.sync(model) == []
    receiver = Receiver(downloads.root, downloads.settings, downloads.stop)
    (copy(downloads.root) / "m-2.gguf").write_bytes(MODEL)
    assert "declares a file of this name" in str(take_in(receiver)["m-2.gguf"].problem)


def test_a_declared_file_that_was_lost_can_be_brought_back(downloads: Downloads) -> None:
    data = downloads.serve()
    assert downloads.sync(downloads.model(data)) == []
    (downloads.root / "m.gguf").write_bytes(b"damaged")
    receiver = Receiver(downloads.root, downloads.settings, downloads.stop)
    copy(downloads.root, m=data)
    assert take_in(receiver)["m.gguf"].problem is None
    assert downloads.published() == data


def test_a_file_of_a_set_that_is_not_complete_yet_is_not_replaced(downloads: Downloads) -> None:
    data = downloads.serve()
    assert len(downloads.sync(downloads.model(data), downloads.model(b"", "absent"))) == 1
    receiver = Receiver(downloads.root, downloads.settings, downloads.stop)
    receiver.open()
    copy(downloads.root, m=MODEL)
    assert "the downloader has published a file of this name" in str(take_in(receiver)["m.gguf"].problem)
    assert downloads.published() == data


def test_what_was_received_is_a_persons_and_never_pruned(downloads: Downloads) -> None:
    old, new = downloads.serve("old"), downloads.serve("new", 5000, 3)
    receiver = Receiver(downloads.root, downloads.settings, downloads.stop)
    receiver.open()
    copy(downloads.root, old=old, mine=MODEL)
    take_in(receiver)
    volume = Volume(downloads.root, "pod")
    assert volume.verified("mine.gguf") == Verified(sha256(MODEL), FOUND_ON_VOLUME)
    # Declared afterwards, it is taken as it is; undeclared again, it stays.
    assert downloads.sync(downloads.model(old, "old")) == []
    assert downloads.source.requests == []
    config = Config(downloads.root, (downloads.model(new, "new"),), prune_keep_sets=1)
    assert Synchronizer(config, downloads.settings, downloads.stop).run() == []
    assert (downloads.published("old"), downloads.published("mine")) == (old, MODEL)


def test_durable_files_are_recorded_as_such(root: Path, settings: Settings) -> None:
    receiver = Receiver(root, replace(settings, is_durable=True), threading.Event())
    receiver.open()
    copy(root, m=MODEL)
    take_in(receiver)
    assert json.loads((root / ".nlocalmodels" / "verified" / "m.gguf.json").read_text())["bootId"] is None


def test_a_stop_while_checking_leaves_the_rest_for_the_next_run(root: Path, settings: Settings) -> None:
    stop = threading.Event()
    receiver = Receiver(root, settings, stop)
    receiver.open()
    folder = copy(root, a=MODEL, b=OTHER)
    receiver.wait(None)
    files = receiver.take_in()
    assert next(files).file == "a.gguf"
    stop.set()
    with pytest.raises(StoppedError):
        next(files)
    assert names(folder) == ["DONE", "b.gguf"]
    assert [received.file for received in Receiver(root, settings, threading.Event()).take_in()] == ["b.gguf"]
    assert names(folder) == []


def test_a_wait_in_vain_ends_and_keeps_what_was_copied(receiver: Receiver, root: Path) -> None:
    folder = copy(root, done=False, a=MODEL)
    with pytest.raises(ExhaustedError, match="DONE has not come in 0 s"):
        receiver.wait(0.0)
    assert names(folder) == ["a.gguf"]


def test_a_wait_says_what_is_there_so_far(
    root: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "nlocalmodels_downloader")
    monkeypatch.setattr(receive, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(receive, "REPORT_SECONDS", 0.0)
    stop = threading.Event()
    receiver = Receiver(root, settings, stop)
    receiver.open()
    copy(root, done=False, a=MODEL, b=OTHER)
    thread = threading.Thread(target=receiver.wait, args=(30.0,))
    thread.start()
    wait_for(lambda: "2 files are there so far, 10.7 KiB" in caplog.text, "a report")
    copy(root)
    thread.join(20)
    assert not thread.is_alive()


def test_a_volume_that_cannot_be_written_is_named(root: Path, settings: Settings) -> None:
    root.write_text("a file")
    with pytest.raises(SpaceError, match=f"modelPath {root}: cannot be created"):
        Receiver(root, settings, threading.Event()).open()


def test_the_command_exits_with_0_when_all_were_good(
    run_receive: RunReceive, root: Path, termination: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy(root, a=MODEL)
    assert run_receive("--timeout-seconds", "5") == 0
    captured = capsys.readouterr()
    assert captured.out == f"a.gguf: published, 5000 bytes, sha256 {sha256(MODEL)}\n"
    assert f"kubectl cp FILE {os.uname().nodename}:{root}/.nlocalmodels/incoming/" in captured.err
    assert f"kubectl exec {os.uname().nodename} -- touch {root}/.nlocalmodels/incoming/DONE" in captured.err
    assert termination.read_text() == ""


def test_the_command_exits_with_13_when_some_were_broken(run_receive: RunReceive, root: Path, termination: Path) -> None:
    (copy(root, a=MODEL, b=b"<html>") / "c.bin").write_bytes(b"x")
    assert run_receive() == 13
    assert names(root) == [".nlocalmodels", "a.gguf"]
    [line] = termination.read_text().splitlines()
    assert "b.gguf: b.gguf does not start with the GGUF magic" in line
    assert "c.bin: .bin is refused, only GGUF is served" in line


def test_the_command_exits_with_14_on_timeout(run_receive: RunReceive, termination: Path) -> None:
    assert run_receive("--timeout-seconds", "0") == 14
    assert "DONE has not come" in termination.read_text()


def test_the_command_says_so_when_nothing_was_copied(
    run_receive: RunReceive, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy(root)
    assert run_receive() == 0
    assert "held no file, so nothing is published" in capsys.readouterr().err


def test_the_command_in_json(run_receive: RunReceive, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy(root, a=MODEL, b=b"x")
    assert run_receive("--json") == 13
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    expected = {"event": "received", "file": "a.gguf", "sizeBytes": 5000, "sha256": sha256(MODEL), "problem": None}
    assert first == expected
    assert (second["file"], second["sha256"]) == ("b.gguf", None)
    assert second["problem"]


def test_a_person_copies_files_and_says_that_they_are_there(root: Path) -> None:
    with started(root, "--timeout-seconds", "60") as process:
        assert process.stdout is not None
        assert "kubectl cp FILE" in process.stdout.readline()
        assert "kubectl exec" in process.stdout.readline()
        copy(root, a=MODEL)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert sha256(MODEL) in output
    assert (root / "a.gguf").read_bytes() == MODEL


def test_sigterm_ends_the_wait_at_once(root: Path) -> None:
    with started(root) as process:
        assert process.stdout is not None
        assert "kubectl cp FILE" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 143, output
    assert "Traceback" not in output
