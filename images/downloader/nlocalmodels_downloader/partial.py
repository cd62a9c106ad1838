"""A file that is not whole yet: its bytes, and a journal of the blocks that are.

A journal line is written after its block's bytes, so a kill at any moment leaves a journal that claims too little, never too
much. A power cut can lose bytes that a line claims; each line carries the block's CRC-32, and a block of an earlier run that
does not match it when it is read is fetched again. So neither needs a sync on the way (docs/decisions/0002-journal.md).
"""

from __future__ import annotations

import errno
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nlocalmodels_downloader import checksum
from nlocalmodels_downloader.errors import SpaceError
from nlocalmodels_downloader.segments import BLOCK_BYTES, num_blocks

_JOURNAL_VERSION = 1
# Linux keeps runs of up to 8 free pages per processor and hands them out again at once; the longer ones that larger writes are
# given can be memory that a virtual machine's host has taken back and must find again (docs/decisions/0009-connections.md).
_WRITE_BYTES = 32 * 1024
CLAIM = re.compile(rb"^(\d{1,9}) ([0-9a-f]{8})\n", re.MULTILINE)


class Partial:
    """Two files in a folder that no other process writes to: `<key>.data` and `<key>.journal`.

    Blocks may be written by several threads, each block by one. `generation` counts the resets.
    """

    def __init__(self, folder: Path, key: str, size_bytes: int, validator: str | None) -> None:
        """Opens what an earlier run left if it is of the same file, and starts anew otherwise.

        Args:
            validator: what must be the same for old and new bytes to belong together; None when the key is a digest.
        """
        self._folder = folder
        self.data_path = folder / f"{key}.data"
        self.journal_path = folder / f"{key}.journal"
        self.size_bytes = size_bytes
        self._identity = {"version": _JOURNAL_VERSION, "key": key, "sizeBytes": size_bytes, "validator": validator}
        self._changed = threading.Condition()
        self._writing = threading.Lock()
        self.generation = 0
        with naming_space_errors(self._folder), ExitStack() as opened:
            self._data = os.open(self.data_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            opened.callback(os.close, self._data)
            # Block to CRC-32. Those of an earlier run are claims until they are read.
            self._complete = self._recover()
            self._claimed = set(self._complete)
            self._journal = os.open(self.journal_path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            opened.pop_all()
        self.resumed_bytes = self.complete_bytes

    @property
    def complete_bytes(self) -> int:
        with self._changed:
            return sum(self._block_bytes(block) for block in self._complete)

    def missing_blocks(self) -> list[int]:
        """Returns the numbers of the blocks still to fetch, ascending."""
        with self._changed:
            return [block for block in range(num_blocks(self.size_bytes)) if block not in self._complete]

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Stores bytes that no journal line claims yet.

        Raises:
            SpaceError: the volume is full or cannot be written; all that was complete before is kept.
        """
        view = memoryview(data)
        # The kernel lets one thread at a time write to a file; waiting here costs no CPU, waiting there does.
        with naming_space_errors(self._folder), self._writing:
            while view:
                written = os.pwrite(self._data, view[:_WRITE_BYTES], offset)
                view, offset = view[written:], offset + written

    def complete(self, block: int, crc32: int) -> None:
        """Records that a block's bytes are all written."""
        with self._changed, naming_space_errors(self._folder):
            os.write(self._journal, f"{block} {crc32:08x}\n".encode())
            self._complete[block] = crc32
            self._claimed.discard(block)
            self._changed.notify_all()

    def read_complete(self, block: int, buffer: memoryview, timeout_seconds: float) -> memoryview | None:
        """Reads a complete block from disk into `buffer`, of a block's size, and returns what was read.

        None if the block is not complete within the time.

        A block of an earlier run that is not what its journal line says is forgotten, and so missing again.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: block in self._complete, timeout_seconds):
                return None
            crc32, is_claim, generation = self._complete[block], block in self._claimed, self.generation
        with naming_space_errors(self._folder):
            length = os.preadv(self._data, [buffer[: self._block_bytes(block)]], block * BLOCK_BYTES)
        data = buffer[:length]
        if not is_claim:
            return data
        is_good = len(data) == self._block_bytes(block) and checksum.crc32(data) == crc32
        with self._changed:
            if self.generation == generation:
                self._claimed.discard(block)
                if not is_good:
                    del self._complete[block]
        return data if is_good else None

    def reset(self) -> None:
        """Forgets every block, for bytes that turned out wrong, and gives their space back."""
        with self._changed, naming_space_errors(self._folder):
            self._complete.clear()
            self._claimed.clear()
            self.generation += 1
            self._empty()
            self._write_header()
            former, self._journal = self._journal, os.open(self.journal_path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            os.close(former)

    def finish(self, is_durable: bool) -> None:
        """Gives the file its size and, if asked, makes its bytes durable. It may then be renamed to its own name."""
        with naming_space_errors(self._folder):
            os.ftruncate(self._data, self.size_bytes)
            if is_durable:
                os.fsync(self._data)

    @property
    def is_named(self) -> bool:
        """Whether the file still has its name; where locks lie, another process may have taken this one for dead."""
        try:
            return os.path.samestat(os.fstat(self._data), self.data_path.stat())
        except FileNotFoundError:
            return False

    def close(self) -> None:
        # A thread that a stop has left behind must find no descriptor, least of all one that is another file's by then.
        data, self._data = self._data, -1
        journal, self._journal = self._journal, -1
        os.close(data)
        os.close(journal)

    def discard(self) -> None:
        """Removes what is left of it. After publication that is the journal alone."""
        self.data_path.unlink(missing_ok=True)
        self.journal_path.unlink(missing_ok=True)

    def _block_bytes(self, block: int) -> int:
        return min(BLOCK_BYTES, self.size_bytes - block * BLOCK_BYTES)

    def _recover(self) -> dict[int, int]:
        """Returns what whole journal lines claim, and leaves a journal that says just that."""
        try:
            header, _, body = self.journal_path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            header = body = b""
        claims: dict[int, int] = {}
        if header == self._header():
            last = num_blocks(self.size_bytes)
            claims = {int(block): int(crc32, 16) for block, crc32 in CLAIM.findall(body) if int(block) < last}
        if not claims:
            self._empty()
        self._write_header("".join(f"{block} {crc32:08x}\n" for block, crc32 in claims.items()))
        return claims

    def _empty(self) -> None:
        # ext4 answers any truncation to nothing, also of nothing, by writing the whole file to the disk when it is next closed.
        if os.fstat(self._data).st_size:
            os.ftruncate(self._data, 0)

    def _header(self) -> bytes:
        return json.dumps(self._identity, sort_keys=True).encode()

    def _write_header(self, body: str = "") -> None:
        fresh = self.journal_path.with_suffix(".journal-new")
        fresh.write_bytes(self._header() + b"\n" + body.encode())
        os.replace(fresh, self.journal_path)


_SPACE_ERRORS = {
    errno.ENOSPC: "is full",
    errno.EDQUOT: "has reached its quota",
    errno.EFBIG: "does not take files this large",
    errno.EROFS: "is read-only",
    errno.EACCES: "may not be written by this user",
    errno.EPERM: "may not be written by this user",
}


@contextmanager
def naming_space_errors(folder: Path) -> Iterator[None]:
    """Turns the errors of a full, read-only or failing volume into one that says so."""
    try:
        yield
    except OSError as error:
        if error.errno in _SPACE_ERRORS:
            problem = f"{_SPACE_ERRORS[error.errno]}; enlarge it or make it writable"
        else:
            problem = f"fails ({error.strerror or error}); look after it and run again"
        raise SpaceError(f"{folder}: the volume {problem}. What has arrived is kept.") from None
