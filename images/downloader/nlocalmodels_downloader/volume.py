"""The folder of models and what the downloader keeps beside them.

MODEL_PATH/<file>.gguf                      finished models, plain files
MODEL_PATH/.nlocalmodels/partials/<owner>.<n>/   unfinished ones, of one process only
MODEL_PATH/.nlocalmodels/verified/<file>.json    what a finished file was when its digest was last computed
MODEL_PATH/.nlocalmodels/replaced/               files of other hands that had a declared name
MODEL_PATH/.nlocalmodels/publish.lock            one process publishes at a time
MODEL_PATH/.nlocalmodels/sets/<id>.json          a set whose models are all there (manifest.py)
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from nlocalmodels_downloader.errors import SpaceError, StoppedError
from nlocalmodels_downloader.partial import naming_space_errors

STATE_FOLDER = ".nlocalmodels"
MAX_WORKSPACES = 64
_MAX_TAKEOVERS = 100
MAX_LOCK_WAITS = 100


@dataclass(frozen=True, slots=True)
class Verified:
    """A finished file's digest, and where that came from."""

    sha256: str
    source: str


class Volume:
    def __init__(self, root: Path, owner: str) -> None:
        self.root = root
        self.state = root / STATE_FOLDER
        self._owner = re.sub(r"[^A-Za-z0-9._-]", "_", owner) or "local"
        self._workspace_lock: int | None = None
        self._workspace: Path | None = None

    def path(self, file: str) -> Path:
        return self.root / file

    def workspace(self) -> Path:
        """Returns a folder that is this process's own for as long as it lives, and the same one after a restart.

        The lock only tells live processes of one owner apart. Where locks lie, owners differ (a pod's UID), and a wrong
        digest is never published in any case.
        """
        if self._workspace is not None:
            return self._workspace
        with naming_space_errors(self.root):
            for number in range(MAX_WORKSPACES):
                folder = self._first_workspace().with_name(f"{self._owner}.{number}")
                lock = _take_workspace(folder)
                if lock is not None:
                    self._workspace_lock, self._workspace = lock, folder
                    return folder
        raise SpaceError(f"{self.state}: {MAX_WORKSPACES} downloads of '{self._owner}' run already; end some of them.")

    def _first_workspace(self) -> Path:
        return self.state / "partials" / f"{self._owner}.0"

    def close(self) -> None:
        """Gives the workspace back, and removes it when nothing unfinished is left in it."""
        if self._workspace is None or self._workspace_lock is None:
            return
        if os.listdir(self._workspace) == ["lock"]:
            (self._workspace / "lock").unlink()
            # Another process may have begun to take it over in this moment.
            with suppress(OSError):
                self._workspace.rmdir()
        os.close(self._workspace_lock)
        self._workspace = self._workspace_lock = None

    def discard_partials(self) -> None:
        """Removes what this owner left unfinished, once all that is declared is there."""
        if not self._first_workspace().is_dir():
            return
        for path in self.workspace().iterdir():
            if path.name != "lock":
                path.unlink()

    def verified(self, file: str) -> Verified | None:
        """Returns the digest recorded for a finished file, if the file is still the one it was computed from."""
        try:
            status = self.path(file).stat()
            record = json.loads(self._record_path(file).read_bytes())
            if record["fingerprint"] != _fingerprint(status):
                return None
            return Verified(str(record["sha256"]), str(record["source"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def record_verified(self, file: str, verified: Verified) -> None:
        record = {
            "sha256": verified.sha256,
            "source": verified.source,
            "fingerprint": _fingerprint(self.path(file).stat()),
        }
        write_durably(self._record_path(file), json.dumps(record, indent=1).encode())

    def publish(self, data_path: Path, file: str, verified: Verified) -> None:
        """Gives finished, verified and synced bytes their own name, at once and durably.

        A file of another hand that has the name is kept under `replaced/`; one that the downloader put there is replaced.
        """
        target = self.path(file)
        with naming_space_errors(self.root), self._publishing():
            if os.path.lexists(target) and not self._is_own(file):
                self._keep_replaced(file)
            os.chmod(data_path, 0o644)
            os.replace(data_path, target)
            sync_folder(self.root)
            self.record_verified(file, verified)

    def _is_own(self, file: str) -> bool:
        """Whether a finished file is one that was recorded; its ctime also changes when a kubelet sets its group."""
        try:
            record = json.loads(self._record_path(file).read_bytes())
            return bool(record["fingerprint"][:3] == _fingerprint(self.path(file).stat())[:3])
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _keep_replaced(self, file: str) -> None:
        target = self.path(file)
        kept = self.state / "replaced" / f"{time.strftime('%Y%m%dT%H%M%S')}-{file}"
        kept.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(target, kept)
        except OSError:
            # A folder, or a filesystem without hard links: the name is nobody's for a moment.
            os.rename(target, kept)

    @contextmanager
    def _publishing(self) -> Iterator[None]:
        """Keeps other processes from taking a file published, but not recorded yet, for one of another hand.

        Nothing else rests on this lock, so one that is never given back holds nobody up for long.
        """
        self.state.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.state / "publish.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            for _ in range(MAX_LOCK_WAITS):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    time.sleep(0.1)
                    continue
                except OSError:
                    pass  # a filesystem without locks
                break
            yield
        finally:
            os.close(lock)

    def free_bytes(self) -> int:
        status = os.statvfs(self.root)
        return status.f_bavail * status.f_frsize

    def _record_path(self, file: str) -> Path:
        return self.state / "verified" / f"{file}.json"


def _take_workspace(folder: Path) -> int | None:
    """Returns the descriptor of the folder's lock, None if a live process has it."""
    for _ in range(_MAX_TAKEOVERS):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
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
            if (folder / "lock").stat().st_ino == os.fstat(lock).st_ino:
                return lock
        os.close(lock)  # a lock that its last holder has removed since
    return None


def sha256_of(path: Path, stop: Event) -> str:
    """Computes the digest of what is on disk.

    Raises:
        StoppedError: the stop event was set meanwhile.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(1024 * 1024))
    with path.open("rb", buffering=0) as file:
        while num_bytes := file.readinto(buffer):
            digest.update(buffer[:num_bytes])
            if stop.is_set():
                raise StoppedError("stopped while verifying; the next run verifies again.")
    return digest.hexdigest()


def write_durably(path: Path, data: bytes) -> None:
    """Replaces a small file so that a crash leaves the old or the new one, whole."""
    with naming_space_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Makes a rename durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fingerprint(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
