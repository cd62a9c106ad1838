from __future__ import annotations

import hashlib
import os
import random
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from nlocalmodels_downloader.errors import SpaceError, StoppedError
from nlocalmodels_downloader.hashing import TrailingHash
from nlocalmodels_downloader.partial import Partial
from nlocalmodels_downloader.segments import BLOCK_BYTES, num_blocks

SIZE = 5 * BLOCK_BYTES + 123
DATA = random.Random(0).randbytes(SIZE)
NO_STOP = threading.Event()


def _put(partial: Partial, block: int, data: bytes = DATA) -> None:
    piece = data[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
    partial.write(block * BLOCK_BYTES, piece)
    partial.complete(block, zlib.crc32(piece))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def partial(tmp_path: Path) -> Iterator[Partial]:
    partial = Partial(tmp_path, "key", SIZE, None)
    yield partial
    partial.close()


def _left_by_an_earlier_run(folder: Path, *blocks: int) -> Partial:
    earlier = Partial(folder, "earlier", SIZE, None)
    for block in blocks:
        _put(earlier, block)
    earlier.close()
    return earlier


def _digest(trailing: TrailingHash, partial: Partial) -> str:
    """Does as a transfer: brings what is missing until there is a digest."""
    while True:
        digest = trailing.wait(NO_STOP)
        if digest is not None:
            return digest
        missing = partial.missing_blocks()
        assert missing, "there is neither a digest nor anything to fetch"
        for block in missing:
            _put(partial, block)


@pytest.mark.parametrize("seed", range(10))
def test_hash_is_right_in_whatever_order_blocks_complete(partial: Partial, seed: int) -> None:
    blocks = list(range(num_blocks(SIZE)))
    random.Random(seed).shuffle(blocks)
    trailing = TrailingHash(partial)
    try:
        for block in blocks:
            assert trailing.wait(NO_STOP) is None
            _put(partial, block)
        assert trailing.wait(NO_STOP) == _sha256(DATA)
    finally:
        trailing.close()


def test_hash_is_right_when_several_threads_complete_blocks(partial: Partial) -> None:
    trailing = TrailingHash(partial)
    together = threading.Barrier(3)

    def bring(first: int) -> None:
        together.wait()
        for block in reversed(range(first, num_blocks(SIZE), 3)):
            _put(partial, block)

    threads = [threading.Thread(target=bring, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert trailing.wait(NO_STOP) == _sha256(DATA)
    finally:
        trailing.close()


@pytest.mark.parametrize("num_before", range(num_blocks(SIZE)))
def test_hash_starts_over_after_a_reset(partial: Partial, num_before: int) -> None:
    other = os.urandom(SIZE)
    trailing = TrailingHash(partial)
    try:
        for block in range(num_before):
            _put(partial, block, other)
        partial.reset()
        assert trailing.wait(NO_STOP) is None
        for block in range(num_blocks(SIZE)):
            _put(partial, block)
        assert trailing.wait(NO_STOP) == _sha256(DATA)
    finally:
        trailing.close()


def test_hash_takes_up_what_an_earlier_run_left(tmp_path: Path) -> None:
    _left_by_an_earlier_run(tmp_path, *range(num_blocks(SIZE)))
    partial = Partial(tmp_path, "earlier", SIZE, None)
    trailing = TrailingHash(partial)
    try:
        assert trailing.wait(NO_STOP) == _sha256(DATA)
    finally:
        trailing.close()
        partial.close()


@pytest.mark.parametrize("lost", [{0}, {3}, {5}, {1, 4}, set(range(num_blocks(SIZE)))])
def test_hash_asks_for_the_lost_blocks_of_an_earlier_run_and_for_no_others(tmp_path: Path, lost: set[int]) -> None:
    earlier = _left_by_an_earlier_run(tmp_path, *range(num_blocks(SIZE)))
    with earlier.data_path.open("r+b") as data:
        for block in lost:
            data.seek(block * BLOCK_BYTES)
            data.write(b"lost")
    partial = Partial(tmp_path, "earlier", SIZE, None)
    brought: set[int] = set()
    complete = partial.complete

    def complete_and_tell(block: int, crc32: int) -> None:
        brought.add(block)
        complete(block, crc32)

    partial.complete = complete_and_tell  # type: ignore[method-assign]
    trailing = TrailingHash(partial)
    try:
        assert _digest(trailing, partial) == _sha256(DATA)
    finally:
        trailing.close()
        partial.close()
    assert brought == lost


def test_hash_is_of_what_is_on_disk(partial: Partial) -> None:
    for block in range(num_blocks(SIZE)):
        _put(partial, block)
    with partial.data_path.open("r+b") as data:
        data.write(b"another hand")
    trailing = TrailingHash(partial)
    try:
        assert trailing.wait(NO_STOP) == _sha256(b"another hand" + DATA[12:])
    finally:
        trailing.close()


class SlowPartial(Partial):
    """Reads nothing before it is released."""

    released = threading.Event()

    def read_complete(self, block: int, buffer: memoryview, timeout_seconds: float) -> memoryview | None:
        self.released.wait(20)
        return super().read_complete(block, buffer, timeout_seconds)


def test_hash_ends_its_wait_on_a_stop(tmp_path: Path) -> None:
    _left_by_an_earlier_run(tmp_path, *range(num_blocks(SIZE)))
    partial = SlowPartial(tmp_path, "earlier", SIZE, None)
    stop = threading.Event()
    stop.set()
    trailing = TrailingHash(partial)
    with pytest.raises(StoppedError):
        trailing.wait(stop)
    partial.released.set()
    trailing.close()
    partial.close()


class BrokenPartial(Partial):
    def read_complete(self, block: int, buffer: memoryview, timeout_seconds: float) -> memoryview | None:
        raise SpaceError("the volume fails")


def test_hash_hands_on_what_went_wrong(tmp_path: Path) -> None:
    partial = BrokenPartial(tmp_path, "key", SIZE, None)
    for block in range(num_blocks(SIZE)):
        _put(partial, block)
    trailing = TrailingHash(partial)
    with pytest.raises(SpaceError, match="the volume fails"):
        trailing.wait(NO_STOP)
    trailing.close()
    partial.close()


def test_hash_can_be_closed_while_blocks_are_missing(partial: Partial) -> None:
    trailing = TrailingHash(partial)
    trailing.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "hash"]
