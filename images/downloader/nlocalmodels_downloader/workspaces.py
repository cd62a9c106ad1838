"""The folders of unfinished downloads: one per live process, and what dead ones have left.

MODEL_PATH/.nlocalmodels/partials/<owner>.<n>/lock              held by the process that has the folder, while it lives
MODEL_PATH/.nlocalmodels/partials/<owner>.<n>/<key>.{data,journal}   a file that is not whole yet (partial.py)
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock

from nlocalmodels_downloader.adoption import Adoption, read_claims
from nlocalmodels_downloader.errors import SpaceError
from nlocalmodels_downloader.lease import leased_keys
from nlocalmodels_downloader.partial import naming_space_errors

log = logging.getLogger(__name__)

MAX_WORKSPACES = 64
_MAX_TAKEOVERS = 100
_LOCK = "lock"
_SUFFIXES = (".data", ".journal", ".journal-new")


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
                adoption = Adoption(folder, own, key)
                adopted_bytes += adoption.run(stop)
                if adoption.is_complete:
                    _remove_if_free(folder, {f"{key}{suffix}" for suffix in _SUFFIXES})
            except OSError as error:
                log.warning("what %s has of a file cannot be taken over (%s)", folder, error)
        return adopted_bytes

    def discard_dead(self, keys_done: set[str]) -> None:
        """Removes what dead processes have left of published files, and their workspaces if nothing else is in them.

        Args:
            keys_done: the keys of the files that are published.
        """
        for folder in self.others():
            try:
                keys = keys_done - leased_keys(self._leases)
                names = set(os.listdir(folder))
                done = names & {f"{key}{suffix}" for key in keys for suffix in _SUFFIXES}
                if done or names <= {_LOCK}:
                    _remove_if_free(folder, done)
            except OSError as error:
                log.warning("what is left in %s cannot be removed (%s)", folder, error)

    @property
    def own_name(self) -> str | None:
        return self._own.name if self._own else None

    def is_live(self, name: str) -> bool:
        """Whether another process has the workspace of this name."""
        return self._partials / name != self._own and _is_locked(self._partials / name / _LOCK)

    def discard(self, name: str, key: str) -> bool:
        """Removes what the workspace of this name has of a file, and the workspace if that leaves it empty.

        Returns:
            False when a live process has it.
        """
        return _remove_if_free(self._partials / name, {f"{key}{suffix}" for suffix in _SUFFIXES})

    def others(self) -> list[Path]:
        """Returns the folders of all other processes, live and dead."""
        try:
            return sorted(path for path in self._partials.iterdir() if path != self._own and path.is_dir())
        except OSError:
            return []  # most likely there are none yet

    def _others_by_bytes(self, key: str) -> list[Path]:
        """Returns the workspaces that have something of the file, the one with most of it first."""
        num_bytes: dict[Path, int] = {}
        for folder in self.others():
            with suppress(OSError):
                if (claims := read_claims(folder, key)).header:
                    num_bytes[folder] = claims.num_bytes
        return sorted(num_bytes, key=lambda folder: -num_bytes[folder])


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


def _is_locked(path: Path) -> bool:
    try:
        lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES)
    finally:
        os.close(lock)
    return False


def _give_back(folder: Path, lock: int) -> None:
    # Another process may have begun to take it over in this moment.
    with suppress(OSError):
        if os.listdir(folder) == [_LOCK]:
            (folder / _LOCK).unlink()
            folder.rmdir()
    os.close(lock)


def _remove_if_free(folder: Path, names: set[str]) -> bool:
    """Removes files of a workspace, and the workspace if that leaves it empty, unless a live process has it."""
    lock = _take(folder)
    if lock is None:
        return False
    try:
        for name in sorted(names):
            (folder / name).unlink(missing_ok=True)
    finally:
        _give_back(folder, lock)
    return True
