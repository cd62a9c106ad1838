from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest

from nlocalmodels_downloader.errors import SpaceError
from nlocalmodels_downloader.partial import Partial, naming_space_errors
from nlocalmodels_downloader.segments import BLOCK_BYTES

SIZE = 2 * BLOCK_BYTES + 10
DATA = os.urandom(SIZE)


def _open(folder: Path, key: str = "key", size: int = SIZE, validator: str | None = '"v1"') -> Partial:
    return Partial(folder, key, size, validator)


def _put(partial: Partial, block: int) -> None:
    data = DATA[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
    partial.write(block * BLOCK_BYTES, data)
    partial.complete(block, zlib.crc32(data))


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
    _put(partial, 1)
    partial.finish()
    partial.close()
    assert partial.data_path.read_bytes() == DATA


@pytest.mark.parametrize(("size", "validator"), [(SIZE - 1, '"v1"'), (SIZE, '"v2"'), (SIZE, None)])
def test_partial_starts_anew_when_it_is_of_another_file(tmp_path: Path, size: int, validator: str | None) -> None:
    _left_by_an_earlier_run(tmp_path, 0, 1, 2)
    partial = _open(tmp_path, size=size, validator=validator)
    assert partial.complete_bytes == 0
    assert partial.data_path.stat().st_size == 0
    partial.close()


def test_partial_believes_no_block_whose_bytes_are_not_those_claimed(tmp_path: Path) -> None:
    _left_by_an_earlier_run(tmp_path, 0, 1, 2)
    with (tmp_path / "key.data").open("r+b") as file:
        file.seek(BLOCK_BYTES + 5)
        file.write(b"\0\0\0\0")
    partial = _open(tmp_path)
    assert partial.missing_blocks() == [1]
    partial.close()


def test_partial_believes_no_claim_past_the_end_of_the_data(tmp_path: Path) -> None:
    _left_by_an_earlier_run(tmp_path, 0, 1, 2)
    os.truncate(tmp_path / "key.data", BLOCK_BYTES)
    with (tmp_path / "key.journal").open("ab") as journal:
        journal.write(b"7 00000000\n999999999 00000000\n")
    partial = _open(tmp_path)
    assert partial.missing_blocks() == [1, 2]
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
    again.close()


def test_partial_forgets_everything_on_reset_and_gives_space_back(tmp_path: Path) -> None:
    _left_by_an_earlier_run(tmp_path, 0, 1)
    partial = _open(tmp_path)
    partial.reset()
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
