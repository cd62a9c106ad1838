from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nlocalmodels_downloader.errors import SpaceError, StoppedError
from nlocalmodels_downloader.volume import Verified, Volume, sha256_of, write_durably
from support.downloads import sha256

DIGEST = Verified("ab" * 32, "https://example.org/m.gguf")


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(tmp_path, "pod")


def test_verified_is_what_was_recorded_until_the_file_changes(volume: Volume) -> None:
    path = volume.path("m.gguf")
    path.write_bytes(b"one")
    volume.record_verified("m.gguf", DIGEST)
    assert volume.verified("m.gguf") == DIGEST
    path.write_bytes(b"two")
    os.utime(path, (1, 1))
    assert volume.verified("m.gguf") is None


@pytest.mark.parametrize("record", [b"", b"[]", b"{}", b"null", b'{"fingerprint": []}', b"\xff"])
def test_verified_is_none_when_the_record_is_garbage(volume: Volume, record: bytes) -> None:
    volume.path("m.gguf").write_bytes(b"one")
    volume.record_verified("m.gguf", DIGEST)
    (volume.state / "verified" / "m.gguf.json").write_bytes(record)
    assert volume.verified("m.gguf") is None


def test_workspace_is_the_same_after_a_restart(tmp_path: Path) -> None:
    first = Volume(tmp_path, "pod")
    folder = first.workspace()
    (folder / "left").write_text("unfinished")
    first.close()
    assert Volume(tmp_path, "pod").workspace() == folder


def test_workspace_is_another_for_each_live_process_and_owner(tmp_path: Path) -> None:
    volumes = [Volume(tmp_path, "pod"), Volume(tmp_path, "pod"), Volume(tmp_path, "other/pod")]
    folders = {volume.workspace() for volume in volumes}
    assert len(folders) == 3
    assert {folder.parent for folder in folders} == {tmp_path / ".nlocalmodels" / "partials"}


def test_workspace_goes_when_nothing_unfinished_is_left(volume: Volume) -> None:
    folder = volume.workspace()
    volume.close()
    assert not folder.exists()


def test_workspace_is_never_shared_while_others_come_and_go(tmp_path: Path) -> None:
    """Takes and leaves workspaces in several threads, as processes that end while others start."""
    holders: set[Path] = set()
    lock = threading.Lock()
    problems: list[object] = []

    def come_and_go() -> None:
        for _ in range(150):
            volume = Volume(tmp_path, "pod")
            try:
                folder = volume.workspace()
                with lock:
                    if folder in holders:
                        problems.append(f"{folder} has two holders")
                    holders.add(folder)
                (folder / "data").write_bytes(b"x")
                (folder / "data").unlink()
                with lock:
                    holders.remove(folder)
                volume.close()
            except Exception as error:
                problems.append(error)
                return

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_workspaces_run_out_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nlocalmodels_downloader.workspaces.MAX_WORKSPACES", 1)
    holder = Volume(tmp_path, "pod")
    holder.workspace()
    with pytest.raises(SpaceError, match="end some of them"):
        Volume(tmp_path, "pod").workspace()
    holder.close()


def test_workspace_of_a_killed_process_is_free_again(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys; from nlocalmodels_downloader.volume import Volume; "
        "print(Volume(pathlib.Path(sys.argv[1]), 'pod').workspace(), flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        assert Volume(tmp_path, "pod").workspace() != folder
        process.kill()
    volume = Volume(tmp_path, "pod")
    assert volume.workspace() == folder
    volume.close()


def test_publish_makes_the_bytes_readable_to_others(volume: Volume) -> None:
    data = volume.workspace() / "x.data"
    data.write_bytes(b"weights")
    data.chmod(0o600)
    volume.publish(data, "m.gguf", DIGEST)
    path = volume.path("m.gguf")
    assert path.read_bytes() == b"weights"
    assert path.stat().st_mode & 0o777 == 0o644
    assert volume.verified("m.gguf") == DIGEST


def test_publish_replaces_a_symbolic_link_and_not_its_target(volume: Volume, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"theirs")
    volume.path("m.gguf").symlink_to(elsewhere)
    data = volume.workspace() / "x.data"
    data.write_bytes(b"weights")
    volume.publish(data, "m.gguf", DIGEST)
    assert elsewhere.read_bytes() == b"theirs"
    assert not volume.path("m.gguf").is_symlink()
    assert volume.path("m.gguf").read_bytes() == b"weights"


def test_publish_keeps_a_foreign_file_when_the_filesystem_has_no_hard_links(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", link)
    volume.path("m.gguf").write_bytes(b"theirs")
    data = volume.workspace() / "x.data"
    data.write_bytes(b"weights")
    volume.publish(data, "m.gguf", DIGEST)
    assert volume.path("m.gguf").read_bytes() == b"weights"
    assert [path.read_bytes() for path in (volume.state / "replaced").iterdir()] == [b"theirs"]


def test_publish_keeps_every_foreign_file_of_one_second(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.strftime", lambda _: "20261124T081500")
    for theirs in (b"one", b"two", b"three"):
        volume.path("m.gguf").unlink(missing_ok=True)
        volume.path("m.gguf").write_bytes(theirs)
        data = volume.workspace() / "x.data"
        data.write_bytes(b"weights")
        volume.publish(data, "m.gguf", DIGEST)
    assert {path.read_bytes() for path in (volume.state / "replaced").iterdir()} == {b"one", b"two", b"three"}


def test_publish_goes_on_when_another_process_never_gives_the_lock_back(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nlocalmodels_downloader.volume.MAX_LOCK_WAITS", 1)
    data = volume.workspace() / "x.data"
    data.write_bytes(b"weights")
    with (volume.state / "publish.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        volume.publish(data, "m.gguf", DIGEST)
    assert volume.path("m.gguf").read_bytes() == b"weights"


def test_sha256_of_is_the_digest_of_what_is_on_disk(tmp_path: Path) -> None:
    data = os.urandom(3_000_001)
    (tmp_path / "x").write_bytes(data)
    assert sha256_of(tmp_path / "x", threading.Event()) == sha256(data)


def test_sha256_of_ends_when_stopped(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedError):
        sha256_of(tmp_path / "x", stop)


def test_write_durably_leaves_the_new_content_and_nothing_else(tmp_path: Path) -> None:
    for content in (b"old", b"new"):
        write_durably(tmp_path / "folder" / "x", content)
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "folder").iterdir()] == [("x", b"new")]
