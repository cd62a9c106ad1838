from __future__ import annotations

import os
import random
import threading
import zlib
from pathlib import Path

import pytest

from nlocalmodels_downloader.errors import SpaceError
from nlocalmodels_downloader.partial import Partial, naming_space_errors
from nlocalmodels_downloader.segments import BLOCK_BYTES, num_blocks

SIZE = 2 * BLOCK_BYTES + 10
DATA = os.urandom(SIZE)


def _open(folder: Path, key: str = "key", size: int = SIZE, validator: str | None = '"v1"') -> Partial:
    return Partial(folder, key, size, validator)


def _put(partial: Partial, block: int) -> None:
    data = DATA[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
    partial.write(block * BLOCK_BYTES, data)
    partial.complete(block, zlib.crc32(data))


def _read(partial: Partial, block: int, timeout_seconds: float = 0.0) -> bytes | None:
    data = partial.read_complete(block, memoryview(bytearray(BLOCK_BYTES)), timeout_seconds)
    return None if data is None else bytes(data)


def _block(block: int) -> bytes:
    return DATA[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]


def _left_by_an_earlier_run(folder: Path, *blocks: int) -> None:
    partial = _open(folder)
    for block in blocks:
        _put(partial, block)
    partial.close()


def test_partial_takes_up_what_an_earlier_run_completed(tmp_path: Path) -> None:
    _left_by_an_earlier_run(tmp_path, 0, 2)
    partial = _open(tmp_path)
    assert partial.missing_blocks() == [1]
    assert partial.complete_bytes == partial.resumed_bytes == BLOCK_BYTES + 10
    assert [_read(partial, block) for block in range(3)] == [_block(0), None, _block(2)]
    _put(partial, 1)
    partial.finish(is_durable=False)
    partial.close()
    assert partial.data_path.read_bytes() == DATA


def test_partial_truncates_no_empty_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ext4 takes that as a sign of a file that is replaced, and writes all of it to the disk when it is closed."""
    sizes: list[int] = []
    truncate = os.ftruncate

    def recorded(descriptor: int, size: int) -> None:
        sizes.append(size)
        truncate(descriptor, size)

    monkeypatch.setattr(os, "ftruncate", recorded)
    partial = _open(tmp_path)
    partial.reset()
    assert sizes == []
    _put(partial, 0)
    partial.reset()
    assert sizes == [0]
    for block in range(3):
        _put(partial, block)
    partial.finish(is_durable=False)
    partial.close()
    assert sizes == [0, SIZE]


@pytest.mark.parametrize("is_durable", [True, False])
def test_partial_waits_for_the_disk_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_durable: bool) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    partial = _open(tmp_path)
    partial.finish(is_durable)
    partial.close()
    assert partial.data_path.stat().st_size == SIZE
    assert synced == ([str(partial.data_path)] if is_durable else [])


@pytest.mark.parametrize(("size", "validator"), [(SIZE - 1, '"v1"'), (SIZE, '"v2"'), (SIZE, None)])
def test_partial_starts_anew_when_it_is_of_another_file(tmp_path: Path, size: int, validator: str | None) -> None:
    _left_by_an_earlier_run(tmp_path, 0, 1, 2)
    partial = _open(tmp_path, size=size, validator=validator)
    assert partial.complete_bytes == 0
    assert partial.data_path.stat().st_size == 0
    partial.close()


def test_partial_forgets_a_block_whose_bytes_are_not_those_claimed_when_it_is_read(tmp_path: Path) -> None:
    _left_by_an_earlier_run(tmp_path, 0, 1, 2)
    with (tmp_path / "key.data").open("r+b") as file:
        file.seek(BLOCK_BYTES + 5)
        file.write(b"\0\0\0\0")
    partial = _open(tmp_path)
    assert partial.missing_blocks() == []
    assert [_read(partial, block) for block in range(3)] == [_block(0), None, _block(2)]
    assert partial.missing_blocks() == [1]
    assert partial.complete_bytes == BLOCK_BYTES + 10
    _put(partial, 1)
    assert _read(partial, 1) == _block(1)
    partial.close()
    again = _open(tmp_path)
    assert [_read(again, block) for block in range(3)] == [_block(block) for block in range(3)]
    again.close()


def test_partial_believes_no_claim_past_the_end_of_the_data(tmp_path: Path) -> None:
    _left_by_an_earlier_run(tmp_path, 0, 1, 2)
    os.truncate(tmp_path / "key.data", BLOCK_BYTES)
    with (tmp_path / "key.journal").open("ab") as journal:
        journal.write(b"7 00000000\n999999999 00000000\n")
    partial = _open(tmp_path)
    assert partial.complete_bytes <= SIZE
    assert [_read(partial, block) for block in (0, 1, 2, 7)] == [_block(0), None, None, None]
    assert partial.missing_blocks() == [1, 2]
    partial.close()


def test_partial_whose_data_is_gone_has_nothing(tmp_path: Path) -> None:
    _left_by_an_earlier_run(tmp_path, 0, 1, 2)
    (tmp_path / "key.data").unlink()
    partial = _open(tmp_path)
    assert [_read(partial, block) for block in range(3)] == [None, None, None]
    assert partial.missing_blocks() == [0, 1, 2]
    partial.close()


@pytest.mark.parametrize("seed", range(20))
def test_partial_keeps_exactly_the_good_blocks_after_a_crash(tmp_path: Path, seed: int) -> None:
    """A crash may tear the journal anywhere and lose the bytes of any claimed block."""
    chance = random.Random(seed)
    written = chance.sample(range(3), chance.randint(0, 3))
    _left_by_an_earlier_run(tmp_path, *written)
    journal_path, data_path = tmp_path / "key.journal", tmp_path / "key.data"
    journal = journal_path.read_bytes()
    header_bytes = journal.index(b"\n") + 1
    kept_bytes = chance.randint(header_bytes, len(journal))
    journal_path.write_bytes(journal[:kept_bytes] + chance.choice([b"", b"\0" * 9]))
    claimed = {int(line.split()[0]) for line in journal[header_bytes:kept_bytes].splitlines(True) if line.endswith(b"\n")}
    lost = set(chance.sample(range(3), chance.randint(0, 2)))
    with data_path.open("r+b") as data:
        for block in lost:
            data.seek(block * BLOCK_BYTES)
            data.write(b"lost")
    partial = _open(tmp_path)
    read = {block: _read(partial, block) for block in range(3)}
    good = claimed - lost
    assert read == {block: _block(block) if block in good else None for block in range(3)}
    assert partial.missing_blocks() == sorted(set(range(num_blocks(SIZE))) - good)
    partial.close()


def test_partial_lets_a_reader_wait_for_a_block(tmp_path: Path) -> None:
    partial = _open(tmp_path)
    read: list[bytes | None] = []
    reader = threading.Thread(target=lambda: read.append(_read(partial, 1, 20.0)))
    reader.start()
    _put(partial, 0)
    assert read == []
    _put(partial, 1)
    reader.join()
    assert read == [_block(1)]
    partial.close()


def test_partial_keeps_a_block_that_came_anew_while_the_old_claim_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _left_by_an_earlier_run(tmp_path, 0)
    with (tmp_path / "key.data").open("r+b") as file:
        file.write(b"lost")
    partial = _open(tmp_path)
    read = os.preadv

    def read_and_be_overtaken(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        length = read(descriptor, buffers, offset)
        partial.reset()
        _put(partial, 0)
        return length

    monkeypatch.setattr(os, "preadv", read_and_be_overtaken)
    assert _read(partial, 0) is None
    monkeypatch.setattr(os, "preadv", read)
    assert partial.missing_blocks() == [1, 2]
    assert _read(partial, 0) == _block(0)
    partial.close()


@pytest.mark.parametrize("lost", range(1, 12))
def test_partial_survives_a_journal_torn_anywhere(tmp_path: Path, lost: int) -> None:
    _left_by_an_earlier_run(tmp_path, 0, 1)
    journal = tmp_path / "key.journal"
    os.truncate(journal, journal.stat().st_size - lost)
    partial = _open(tmp_path)
    assert partial.missing_blocks() == [1, 2]
    _put(partial, 1)
    partial.close()
    again = _open(tmp_path)
    assert again.missing_blocks() == [2]
    assert [_read(again, block) for block in (0, 1)] == [_block(0), _block(1)]
    again.close()


def test_partial_forgets_everything_on_reset_and_gives_space_back(tmp_path: Path) -> None:
    _left_by_an_earlier_run(tmp_path, 0, 1)
    partial = _open(tmp_path)
    assert partial.generation == 0
    partial.reset()
    assert partial.generation == 1
    assert _read(partial, 0) is None
    assert partial.missing_blocks() == [0, 1, 2]
    assert partial.data_path.stat().st_size == 0
    _put(partial, 2)
    partial.close()
    again = _open(tmp_path)
    assert again.missing_blocks() == [0, 1]
    again.close()


def test_partial_writes_nothing_after_close(tmp_path: Path) -> None:
    partial = _open(tmp_path)
    partial.close()
    with (tmp_path / "other").open("w+b"), pytest.raises(SpaceError):
        partial.write(0, b"late")
    assert (tmp_path / "other").read_bytes() == b""


def test_partial_leaves_no_file_when_discarded(tmp_path: Path) -> None:
    _left_by_an_earlier_run(tmp_path, 0)
    partial = _open(tmp_path)
    partial.close()
    partial.discard()
    assert list(tmp_path.iterdir()) == []


def test_partial_says_space_error_when_its_folder_is_gone(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match="No such file"):
        _open(tmp_path / "absent")


@pytest.mark.parametrize(
    ("number", "text"), [(28, "is full"), (30, "read-only"), (122, "quota"), (5, "Input/output"), (116, "Stale")]
)
def test_naming_space_errors_names_the_problem_and_the_folder(tmp_path: Path, number: int, text: str) -> None:
    with pytest.raises(SpaceError, match=text) as caught, naming_space_errors(tmp_path):
        raise OSError(number, os.strerror(number))
    assert str(tmp_path) in str(caught.value)
