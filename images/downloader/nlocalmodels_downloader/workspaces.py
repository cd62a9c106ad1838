"""The folders of unfinished downloads: one per live process, and what dead ones have left.

MODEL_PATH/.nlocalmodels/partials/<owner>.<n>/lock              held by the process that has the folder, while it lives
MODEL_PATH/.nlocalmodels/partials/<owner>.<n>/<key>.{data,journal}   a file that is not whole yet (partial.py)
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock

from nlocalmodels_downloader.errors import SpaceError, StoppedError
from nlocalmodels_downloader.lease import leased_keys
from nlocalmodels_downloader.partial import CLAIM, naming_space_errors
from nlocalmodels_downloader.progress import human_bytes
from nlocalmodels_downloader.segments import BLOCK_BYTES

log = logging.getLogger(__name__)

MAX_WORKSPACES = 64
_MAX_TAKEOVERS = 100
_LOCK = "lock"
_SUFFIXES = (".data", ".journal", ".journal-new")
# The two files are on different filesystems, or the kernel or this filesystem cannot copy by itself.
_NO_COPY = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


class Workspaces:
    def __init__(self, state: Path, owner: str) -> None:
        self._root = state.parent
        self._partials = state / "partials"
        self._leases = state / "leases"
        self._owner = re.sub(r"[^A-Za-z0-9._-]", "_", owner) or "local"
        self._claiming = Lock()  # files are fetched in several threads
        self._lock: int | None = None
        self._own: Path | None = None

    def claim(self) -> Path:
        """Returns a folder that is this process's own for as long as it lives, and the same one after a restart.

        The lock only tells live processes of one owner apart. Where locks lie, owners differ (a pod's UID), and a wrong
        digest is never published in any case.
        """
        with self._claiming, naming_space_errors(self._root):
            if self._own is not None:
                if not self._own.is_dir():
                    # Locks lie here: another pod took this one for dead, and its empty folder away.
                    self._own.mkdir(parents=True, exist_ok=True)
                    (self._own / _LOCK).touch()
                return self._own
            for number in range(MAX_WORKSPACES):
                folder = self._partials / f"{self._owner}.{number}"
                lock = _take(folder)
                if lock is not None:
                    self._lock, self._own = lock, folder
                    return folder
        raise SpaceError(f"{self._partials}: {MAX_WORKSPACES} downloads of '{self._owner}' run already; end some of them.")

    def close(self) -> None:
        """Gives the workspace back, and removes it when nothing unfinished is left in it."""
        if self._own is not None and self._lock is not None:
            _give_back(self._own, self._lock)
        self._own = self._lock = None

    def present_bytes(self, key: str | None) -> int:
        """Returns the disk space that this owner's partial of a file takes already."""
        if key is None:
            return 0
        sizes = [0]
        for path in self._partials.glob(f"{self._owner}.*/{key}.data"):
            with suppress(OSError):
                sizes.append(path.stat().st_blocks * 512)
        return max(sizes)

    def discard_partials(self) -> None:
        """Removes what this owner left unfinished, once all that is declared is there."""
        if self._own is None and not (self._partials / f"{self._owner}.0").is_dir():
            return
        for path in self.claim().iterdir():
            if path.name != _LOCK:
                path.unlink(missing_ok=True)

    def adopt(self, key: str, stop: Event) -> int:
        """Copies what other processes have of a file into this workspace, and removes it where its owner is dead.

        Only for the holder of the key's lease that has not opened its own partial yet: nobody who is alive and cares for
        the lease writes to these files then. A copy is right even if somebody does, as `Partial` proves every block.

        Returns:
            The bytes adopted. What goes wrong on the volume is logged, as the bytes can be fetched as well.

        Raises:
            StoppedError: the stop event was set; what has been copied is kept.
        """
        own = self.claim()
        adopted_bytes = 0
        for folder in self._others_by_bytes(key):
            try:
                adopted_bytes += _Adoption(folder, own, key).run(stop)
            except OSError as error:
                log.warning("what %s has of a file cannot be taken over (%s)", folder, error)
        return adopted_bytes

    def discard_dead(self, keys_done: set[str]) -> None:
        """Removes what dead processes have left of published files, and their workspaces if nothing else is in them.

        Args:
            keys_done: the keys of the files that are published.
        """
        for folder in self._others():
            try:
                keys = keys_done - leased_keys(self._leases)
                names = set(os.listdir(folder))
                done = names & {f"{key}{suffix}" for key in keys for suffix in _SUFFIXES}
                if done or names <= {_LOCK}:
                    _remove_if_free(folder, done)
            except OSError as error:
                log.warning("what is left in %s cannot be removed (%s)", folder, error)

    def _others(self) -> list[Path]:
        try:
            return sorted(path for path in self._partials.iterdir() if path != self._own and path.is_dir())
        except OSError:
            return []  # most likely there are none yet

    def _others_by_bytes(self, key: str) -> list[Path]:
        """Returns the workspaces that have something of the file, the one with most of it first."""
        num_bytes: dict[Path, int] = {}
        for folder in self._others():
            with suppress(OSError):
                if (claims := _read_claims(folder, key)).header:
                    num_bytes[folder] = claims.num_bytes
        return sorted(num_bytes, key=lambda folder: -num_bytes[folder])


@dataclass(frozen=True, slots=True)
class _Claims:
    """What a journal says, of blocks that its data file is long enough for."""

    header: bytes
    crc32s: dict[int, bytes]
    size_bytes: int

    @property
    def num_bytes(self) -> int:
        return sum(self.block_bytes(block) for block in self.crc32s)

    def block_bytes(self, block: int) -> int:
        return min(BLOCK_BYTES, self.size_bytes - block * BLOCK_BYTES)


_NO_CLAIMS = _Claims(b"", {}, 0)


def _read_claims(folder: Path, key: str) -> _Claims:
    try:
        header, _, body = (folder / f"{key}.journal").read_bytes().partition(b"\n")
        data_bytes = (folder / f"{key}.data").stat().st_size
        identity = json.loads(header)
        claims = _Claims(header, {}, int(identity["sizeBytes"]))
        if identity["key"] != key:
            return _NO_CLAIMS
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return _NO_CLAIMS
    for number, crc32 in CLAIM.findall(body):
        block = int(number)
        if 0 < claims.block_bytes(block) <= data_bytes - block * BLOCK_BYTES:
            claims.crc32s[block] = crc32
    return claims


class _Adoption:
    """Copies one dead workspace's blocks, and never renames: a process thought dead may still have the file open."""

    def __init__(self, folder: Path, own: Path, key: str) -> None:
        self._folder = folder
        self._own = own
        self._key = key
        self._theirs = _read_claims(folder, key)
        self._mine = _read_claims(own, key)

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
        if num_bytes == wanted_bytes:
            _remove_if_free(self._folder, {f"{self._key}{suffix}" for suffix in _SUFFIXES})
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


def _take(folder: Path) -> int | None:
    """Returns the descriptor of the folder's lock, None if a live process has it."""
    for _ in range(_MAX_TAKEOVERS):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except (FileExistsError, FileNotFoundError):
            if folder.is_file():
                raise
            continue  # its last holder removes the folder in this moment
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(lock)
                return None
            # A filesystem without locks: the owner's name alone keeps processes apart.
        with suppress(FileNotFoundError):
            if (folder / _LOCK).stat().st_ino == os.fstat(lock).st_ino:
                return lock
        os.close(lock)  # a lock that its last holder has removed since
    return None


def _give_back(folder: Path, lock: int) -> None:
    # Another process may have begun to take it over in this moment.
    with suppress(OSError):
        if os.listdir(folder) == [_LOCK]:
            (folder / _LOCK).unlink()
            folder.rmdir()
    os.close(lock)


def _remove_if_free(folder: Path, names: set[str]) -> None:
    """Removes files of a workspace, and the workspace if that leaves it empty, unless a live process has it."""
    lock = _take(folder)
    if lock is None:
        return
    try:
        for name in sorted(names):
            (folder / name).unlink(missing_ok=True)
    finally:
        _give_back(folder, lock)
