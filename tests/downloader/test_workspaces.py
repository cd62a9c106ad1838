"""Unfinished downloads of processes that are dead, alive, or alive on a volume whose locks lie."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nlocalmodels_downloader.errors import StoppedError
from nlocalmodels_downloader.lease import Lease
from nlocalmodels_downloader.partial import Partial
from nlocalmodels_downloader.segments import BLOCK_BYTES
from nlocalmodels_downloader.workspaces import Workspaces

KEY = "ab" * 32
SIZE = 4 * BLOCK_BYTES + 1000
DATA = os.urandom(SIZE)
TAIL_BYTES = 1000

# Claims a workspace, says so, and keeps it until its input ends.
HOLDER = """
import fcntl, pathlib, sys
if sys.argv[3] == "lying":
    fcntl.flock = lambda *_: None
from nlocalmodels_downloader.workspaces import Workspaces
print(Workspaces(pathlib.Path(sys.argv[1]), sys.argv[2]).claim(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / ".nlocalmodels"


@pytest.fixture
def own(state: Path) -> Iterator[Workspaces]:
    workspaces = Workspaces(state, "own")
    workspaces.claim()
    yield workspaces
    workspaces.close()


@contextmanager
def _process(state: Path, owner: str, locks: str = "honest") -> Iterator[tuple[subprocess.Popen[str], Path]]:
    command = [sys.executable, "-c", HOLDER, str(state), owner, locks]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def _block(number: int) -> bytes:
    return DATA[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]


def _fill(folder: Path, *blocks: int, key: str = KEY, validator: str | None = None) -> None:
    """Leaves what a download leaves that was ended after these blocks."""
    partial = Partial(folder, key, SIZE, validator)
    for number in blocks:
        partial.write(number * BLOCK_BYTES, _block(number))
        partial.complete(number, zlib.crc32(_block(number)))
    partial.close()


def _left_by_dead(state: Path, owner: str, *blocks: int, key: str = KEY, validator: str | None = None) -> Path:
    workspaces = Workspaces(state, owner)
    folder = workspaces.claim()
    _fill(folder, *blocks, key=key, validator=validator)
    workspaces.close()
    return folder


def _missing(folder: Path) -> list[int]:
    """Returns what remains to fetch, after proving what does not."""
    partial = Partial(folder, KEY, SIZE, None)
    missing = partial.missing_blocks()
    partial.close()
    data = (folder / f"{KEY}.data").read_bytes()
    for number in {0, 1, 2, 3, 4} - set(missing):
        assert data[number * BLOCK_BYTES :][: len(_block(number))] == _block(number)
    return missing


def _after_each_copy(monkeypatch: pytest.MonkeyPatch, call: Callable[[], None]) -> None:
    copy = os.copy_file_range

    def copy_and_call(source: int, target: int, count: int, offset: int, to_offset: int) -> int:
        num_bytes = copy(source, target, count, offset, to_offset)
        call()
        return num_bytes

    monkeypatch.setattr(os, "copy_file_range", copy_and_call)


def _adopt(workspaces: Workspaces) -> int:
    return workspaces.adopt(KEY, threading.Event())


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_adopt_copies_what_a_dead_owner_has_and_removes_it(own: Workspaces, state: Path) -> None:
    dead = _left_by_dead(state, "dead", 0, 2, 4)
    assert _adopt(own) == 2 * BLOCK_BYTES + TAIL_BYTES
    assert _missing(own.claim()) == [1, 3]
    assert not dead.exists()


def test_adopt_keeps_what_is_there_and_adds_what_several_dead_owners_have(own: Workspaces, state: Path) -> None:
    _fill(own.claim(), 1)
    _left_by_dead(state, "few", 0, 1)
    _left_by_dead(state, "many", 1, 2, 4)
    assert _adopt(own) == 2 * BLOCK_BYTES + TAIL_BYTES
    assert _missing(own.claim()) == [3]
    assert _names(state / "partials") == ["own.0"]


def test_adopt_copies_nothing_when_all_is_there_and_removes_the_rest(own: Workspaces, state: Path) -> None:
    _fill(own.claim(), 0, 1)
    dead = _left_by_dead(state, "dead", 1)
    assert _adopt(own) == 0
    assert _missing(own.claim()) == [2, 3, 4]
    assert not dead.exists()


def test_adopt_leaves_other_files_of_a_dead_owner_alone(own: Workspaces, state: Path) -> None:
    dead = _left_by_dead(state, "dead", 0)
    _fill(dead, 1, key="cd" * 32)
    assert _adopt(own) == BLOCK_BYTES
    assert _names(dead) == sorted([f"{'cd' * 32}.data", f"{'cd' * 32}.journal", "lock"])


def test_adopt_without_anything_there_is_nothing(own: Workspaces, state: Path) -> None:
    _left_by_dead(state, "dead", 0, key="cd" * 32)
    assert _adopt(own) == 0
    assert _names(own.claim()) == ["lock"]


def test_adopt_copies_from_a_live_owner_and_removes_nothing(own: Workspaces, state: Path) -> None:
    with _process(state, "live") as (process, live):
        _fill(live, 0, 1)
        assert _adopt(own) == 2 * BLOCK_BYTES
        assert _missing(live) == _missing(own.claim()) == [2, 3, 4]
        process.kill()
    assert _adopt(own) == 0
    assert not live.exists()


def test_adopt_never_takes_the_inode_that_a_process_thought_dead_still_writes_to(own: Workspaces, state: Path) -> None:
    dead = _left_by_dead(state, "dead", 0, 1)
    with (dead / f"{KEY}.data").open("r+b") as zombie:
        assert _adopt(own) == 2 * BLOCK_BYTES
        zombie.write(b"\0" * BLOCK_BYTES)
        zombie.flush()
        assert _missing(own.claim()) == [2, 3, 4]


def test_adopt_leaves_another_version_of_the_file_alone(own: Workspaces, state: Path) -> None:
    _fill(own.claim(), 0)
    dead = _left_by_dead(state, "dead", 0, 1, validator='"v1"')
    assert _adopt(own) == 0
    assert _missing(own.claim()) == [1, 2, 3, 4]
    assert dead.exists()


def test_adopt_believes_no_claim_past_the_end_of_the_data(own: Workspaces, state: Path) -> None:
    dead = _left_by_dead(state, "dead", 0, 1, 2, 4)
    os.truncate(dead / f"{KEY}.data", 2 * BLOCK_BYTES + 5)
    with (dead / f"{KEY}.journal").open("ab") as journal:
        journal.write(b"999999999 00000000\n3 torn")
    assert _adopt(own) == 2 * BLOCK_BYTES
    assert not dead.exists()
    assert _missing(own.claim()) == [2, 3, 4]


def test_adopt_removes_nothing_when_the_file_changes_meanwhile(
    own: Workspaces, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = _left_by_dead(state, "dead", 0, 1, 2)
    _after_each_copy(monkeypatch, lambda: os.truncate(dead / f"{KEY}.data", BLOCK_BYTES))
    assert _adopt(own) == BLOCK_BYTES
    assert _missing(own.claim()) == [1, 2, 3, 4]
    assert (dead / f"{KEY}.data").exists()


@pytest.mark.parametrize("content", [b"", b"\n", b"{", b"[]\n0 00000000\n", b'{"key": 1}\n', b"\xff\n"])
def test_adopt_ignores_a_journal_that_is_garbage(own: Workspaces, state: Path, content: bytes) -> None:
    dead = _left_by_dead(state, "dead", 0)
    (dead / f"{KEY}.journal").write_bytes(content)
    assert _adopt(own) == 0


@pytest.mark.parametrize("error", [errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, None])
def test_adopt_copies_itself_what_the_kernel_does_not(
    own: Workspaces, state: Path, monkeypatch: pytest.MonkeyPatch, error: int | None
) -> None:
    def copy_file_range(*_: object) -> int:
        if error is not None:
            raise OSError(error, os.strerror(error))
        return 0

    monkeypatch.setattr(os, "copy_file_range", copy_file_range)
    _left_by_dead(state, "dead", 0, 4)
    assert _adopt(own) == BLOCK_BYTES + TAIL_BYTES
    assert _missing(own.claim()) == [1, 2, 3]


def test_adopt_is_left_out_when_there_is_no_space(
    own: Workspaces, state: Path, small_mount: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = Workspaces(small_mount / "state", "own")
    dead = _left_by_dead(small_mount / "state", "dead", 0, 1, 2, 3)
    (small_mount / "ballast").write_bytes(b"\0" * BLOCK_BYTES)
    assert _adopt(own) == 0
    assert "no space to take over" in caplog.text
    assert _missing(dead) == [4]
    (small_mount / "ballast").unlink()
    own.close()


def test_adopt_that_fails_midway_keeps_what_was_copied_and_loses_nothing(
    own: Workspaces, state: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dead = _left_by_dead(state, "dead", 0, 1, 2)
    copy = os.copy_file_range

    def fill_up(source: int, target: int, count: int, offset: int, to_offset: int) -> int:
        if offset >= BLOCK_BYTES:
            raise OSError(errno.ENOSPC, "No space left on device")
        return copy(source, target, count, offset, to_offset)

    monkeypatch.setattr(os, "copy_file_range", fill_up)
    _adopt(own)
    assert "No space left" in caplog.text
    assert _missing(own.claim()) == [1, 2, 3, 4]
    assert _missing(dead) == [3, 4]


def test_adopt_ends_between_blocks_when_stopped_and_goes_on_afterwards(
    own: Workspaces, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = _left_by_dead(state, "dead", 0, 1, 2)
    stop = threading.Event()
    _after_each_copy(monkeypatch, stop.set)
    with pytest.raises(StoppedError):
        own.adopt(KEY, stop)
    assert _missing(own.claim()) == [1, 2, 3, 4]
    assert _missing(dead) == [3, 4]
    assert _adopt(own) == 2 * BLOCK_BYTES
    assert _missing(own.claim()) == [3, 4]


def test_discard_dead_removes_what_is_done_and_nothing_else(own: Workspaces, state: Path) -> None:
    done, wanted, leased = KEY, "cd" * 32, "ef" * 32
    dead = _left_by_dead(state, "dead", 0)
    (dead / f"{done}.journal-new").touch()
    _left_by_dead(state, "busy", 0, key=done)
    busy = _left_by_dead(state, "busy", 0, key=wanted)
    waiting = _left_by_dead(state, "waiting", 0, key=leased)
    with _process(state, "empty") as (_, empty):
        pass
    assert _names(empty) == ["lock"]
    assert Lease(state / "leases", leased, "other.0").try_acquire()
    _fill(own.claim(), 0)
    with _process(state, "live") as (_, live), _process(state, "idle") as (_, idle):
        _fill(live, 0)
        own.discard_dead({done, leased})
        assert _missing(live) == [1, 2, 3, 4]
        assert _names(idle) == ["lock"]
        assert _names(busy) == [f"{wanted}.data", f"{wanted}.journal", "lock"]
        assert _names(waiting) == [f"{leased}.data", f"{leased}.journal", "lock"]
        assert not dead.exists()
        assert _missing(own.claim()) == [1, 2, 3, 4]
    own.discard_dead(set())
    assert _names(state / "partials") == ["busy.0", "live.0", "own.0", "waiting.0"]


def test_present_bytes_are_the_disk_space_of_a_partial_of_this_owner(own: Workspaces, state: Path) -> None:
    _fill(own.claim(), 0, 3)
    _left_by_dead(state, "own", 1)
    _left_by_dead(state, "other", 0, 1, 2, 3)
    assert 2 * BLOCK_BYTES <= own.present_bytes(KEY) < 3 * BLOCK_BYTES, "holes take no space"
    assert own.present_bytes("cd" * 32) == own.present_bytes(None) == 0


def test_claim_in_several_threads_is_of_one_folder(state: Path) -> None:
    workspaces, together, folders = Workspaces(state, "own"), threading.Barrier(8), list[Path]()

    def claim() -> None:
        together.wait(20)
        folders.append(workspaces.claim())

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [state / "partials" / "own.0"] * 8
    workspaces.close()


def test_discard_dead_before_anything_is_there_does_nothing(state: Path) -> None:
    Workspaces(state, "own").discard_dead({KEY})
    assert not state.exists()


def test_where_locks_lie_a_live_process_may_lose_its_folder_and_gets_it_back(state: Path) -> None:
    with _process(state, "other", "lying") as (_, folder):
        lying = Workspaces(state, "own")
        live = lying.claim()
        Workspaces(state, "third").discard_dead(set())
        assert not folder.exists(), "this is what a lying lock costs"
        # As the same happens to this process: its lock is on a file that is no more.
        (live / "lock").unlink()
        live.rmdir()
        assert lying.claim() == live
        _fill(live, 0)
        lying.discard_partials()
        lying.close()
        lying.close()
        assert not live.exists()


def test_where_locks_lie_another_owners_file_is_copied_and_its_process_is_not_disturbed(own: Workspaces, state: Path) -> None:
    with _process(state, "other", "lying") as (_, folder):
        partial = Partial(folder, KEY, SIZE, None)
        partial.write(0, _block(0))
        partial.complete(0, zlib.crc32(_block(0)))
        assert _adopt(own) == BLOCK_BYTES
        # The names have gone, the bytes it writes to have not.
        partial.write(BLOCK_BYTES, _block(1))
        partial.complete(1, zlib.crc32(_block(1)))
        partial.close()
        assert _missing(own.claim()) == [1, 2, 3, 4]
