"""Taking over what another process has of a file: its blocks, as far as its journal claims them."""

from __future__ import annotations

import errno
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from nlocalmodels_downloader.errors import StoppedError
from nlocalmodels_downloader.partial import CLAIM
from nlocalmodels_downloader.progress import human_bytes
from nlocalmodels_downloader.segments import BLOCK_BYTES

log = logging.getLogger(__name__)

# The two files are on different filesystems, or the kernel or this filesystem cannot copy by itself.
_NO_COPY = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True)
class Claims:
    """What a journal says, of blocks that its data file is long enough for."""

    header: bytes
    crc32s: dict[int, bytes]
    size_bytes: int

    @property
    def num_bytes(self) -> int:
        return sum(self.block_bytes(block) for block in self.crc32s)

    def block_bytes(self, block: int) -> int:
        return min(BLOCK_BYTES, self.size_bytes - block * BLOCK_BYTES)


_NO_CLAIMS = Claims(b"", {}, 0)


def read_claims(folder: Path, key: str) -> Claims:
    try:
        header, _, body = (folder / f"{key}.journal").read_bytes().partition(b"\n")
        data_bytes = (folder / f"{key}.data").stat().st_size
        identity = json.loads(header)
        claims = Claims(header, {}, int(identity["sizeBytes"]))
        if identity["key"] != key:
            return _NO_CLAIMS
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return _NO_CLAIMS
    for number, crc32 in CLAIM.findall(body):
        block = int(number)
        if 0 < claims.block_bytes(block) <= data_bytes - block * BLOCK_BYTES:
            claims.crc32s[block] = crc32
    return claims


class Adoption:
    """Copies one dead workspace's blocks, and never renames: a process thought dead may still have the file open.

    `is_complete` says that all that was claimed there has been copied, or was here already.
    """

    def __init__(self, folder: Path, own: Path, key: str) -> None:
        self.is_complete = False
        self._folder = folder
        self._own = own
        self._key = key
        self._theirs = read_claims(folder, key)
        self._mine = read_claims(own, key)

    def run(self, stop: Event) -> int:
        theirs, mine = self._theirs, self._mine
        if mine.crc32s and mine.header != theirs.header:
            log.warning("%s has another version of the file; it is left alone", self._folder)
            return 0
        wanted = sorted(theirs.crc32s.keys() - mine.crc32s.keys())
        wanted_bytes = sum(theirs.block_bytes(block) for block in wanted)
        num_bytes = 0
        if wanted:
            target_path = self._own / f"{self._key}.data"
            target_path.touch()
            with (self._folder / f"{self._key}.data").open("rb") as source, target_path.open("r+b") as target:
                if not mine.crc32s:
                    target.truncate(0)
                status = os.fstatvfs(target.fileno())
                if wanted_bytes > (free_bytes := status.f_bavail * status.f_frsize):
                    needed = f"{human_bytes(wanted_bytes)} to copy, {human_bytes(free_bytes)} free"
                    log.warning("no space to take over what %s has of a file: %s", self._folder, needed)
                    return 0
                num_bytes = self._copy(wanted, source.fileno(), target.fileno(), stop)
            log.info("took over %s of a file from %s", human_bytes(num_bytes), self._folder)
        self.is_complete = num_bytes == wanted_bytes
        return num_bytes

    def _copy(self, wanted: list[int], source: int, target: int, stop: Event) -> int:
        crc32s = dict(self._mine.crc32s)
        num_bytes = 0
        try:
            for block in wanted:
                if stop.is_set():
                    raise StoppedError("stopped while taking over what another process had; the next run goes on.")
                length = self._theirs.block_bytes(block)
                if _copy_range(source, target, block * BLOCK_BYTES, length) == length:
                    crc32s[block] = self._theirs.crc32s[block]
                    num_bytes += length
        finally:
            # After the bytes, as everywhere: a kill leaves a journal that claims too little, never too much.
            self._write_journal(crc32s)
        return num_bytes

    def _write_journal(self, crc32s: dict[int, bytes]) -> None:
        journal = self._own / f"{self._key}.journal"
        fresh = journal.with_suffix(".journal-new")
        lines = b"".join(b"%d %s\n" % claim for claim in crc32s.items())
        fresh.write_bytes(self._theirs.header + b"\n" + lines)
        os.replace(fresh, journal)


def _copy_range(source: int, target: int, start: int, length: int) -> int:
    """Returns how many bytes were copied, fewer if the source ends before. A filesystem may copy without moving any."""
    offset, end = start, start + length
    try:
        while offset < end and (num_bytes := os.copy_file_range(source, target, end - offset, offset, offset)):
            offset += num_bytes
    except OSError as error:
        if error.errno not in _NO_COPY:
            raise
    while offset < end and (data := os.pread(source, end - offset, offset)):
        offset += os.pwrite(target, data, offset)
    return offset - start
