"""The folder of models and what the downloader keeps beside them.

MODEL_PATH/<file>.gguf                      finished models, plain files
MODEL_PATH/.nlocalmodels/partials/<owner>.<n>/   unfinished ones, of one process only (workspaces.py)
MODEL_PATH/.nlocalmodels/leases/<key>.<n>        who fetches a file at present (lease.py)
MODEL_PATH/.nlocalmodels/verified/<file>.json    what a finished file was when its digest was last computed
MODEL_PATH/.nlocalmodels/replaced/               files of other hands that had a declared name
MODEL_PATH/.nlocalmodels/former/<sha256>         what a name meant in a set that is still kept (former.py)
MODEL_PATH/.nlocalmodels/incoming/               what a person copies here to be checked and published (receive.py)
MODEL_PATH/.nlocalmodels/publish.lock            one process publishes at a time
MODEL_PATH/.nlocalmodels/sets/<id>.json          a set whose models are all there (manifest.py)
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from nlocalmodels_downloader.errors import SpaceError, StoppedError
from nlocalmodels_downloader.former import Former
from nlocalmodels_downloader.partial import naming_space_errors
from nlocalmodels_downloader.progress import human_bytes
from nlocalmodels_downloader.workspaces import Workspaces

STATE_FOLDER = ".nlocalmodels"
# The source of a file that was there before the downloader was: a person's, which is never removed.
FOUND_ON_VOLUME = "found on the volume"
MAX_LOCK_WAITS = 100
_PUBLISHING = "publishing"


@dataclass(frozen=True, slots=True)
class Verified:
    """A finished file's digest, and where that came from."""

    sha256: str
    source: str


class Volume:
    def __init__(self, root: Path, owner: str) -> None:
        self.root = root
        self.state = root / STATE_FOLDER
        self.leases = self.state / "leases"
        self.workspaces = Workspaces(self.state, owner)
        self.former = Former(self.state)

    def create(self) -> None:
        """Creates the folder of models where it is not there yet.

        Raises:
            SpaceError: it cannot be created.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SpaceError(f"modelPath {self.root}: cannot be created ({error.strerror}); mount a volume.") from None

    def path(self, file: str) -> Path:
        return self.root / file

    def workspace(self) -> Path:
        """Returns a folder that is this process's own for as long as it lives, and the same one after a restart."""
        return self.workspaces.claim()

    def close(self) -> None:
        """Gives the workspace back, and removes it when nothing unfinished is left in it."""
        self.workspaces.close()

    def discard_partials(self) -> None:
        """Removes what this owner left unfinished, once all that is declared is there."""
        self.workspaces.discard_partials()

    def recorded(self, file: str) -> Verified | None:
        """Returns what was recorded for a file that has not changed since, whether or not that can still be trusted."""
        for record, is_publishing in self._records(file):
            # The rename has changed the ctime.
            if (verified := self._matching(file, record, 3 if is_publishing else 4)) is not None:
                return verified
        return None

    def verified(self, file: str) -> Verified | None:
        """Returns the digest recorded for a finished file, if the file is still the one it was computed from.

        A record of bytes that nobody waited for the disk to have is good until the machine starts anew, for a power cut may
        have lost some of them (docs/decisions/0005-durability.md).
        """
        for record, is_publishing in self._records(file):
            if not is_publishing and record.get("bootId") in (None, boot_id()):
                return self._matching(file, record, 4)
        return None

    def record_verified(self, file: str, verified: Verified, is_durable: bool = False) -> None:
        """Records a digest that was just computed. `is_durable` says that the disk has the bytes."""
        self._write_record(file, _record(verified, self.path(file), is_durable))

    def publish(self, data_path: Path, file: str, verified: Verified, is_durable: bool = False) -> bool:
        """Gives finished and verified bytes their own name, at once.

        A file of another hand that has the name is kept under `replaced/`; one that the downloader put there is replaced.
        Returns False when the bytes have gone: where locks lie, another process may have taken this one for dead.
        """
        target = self.path(file)
        with naming_space_errors(self.root), self._publishing():
            try:
                os.chmod(data_path, 0o644)
                if os.path.lexists(target) and not self.is_own(file):
                    self._keep_replaced(file)
                self._announce(data_path, file, verified, is_durable)
                os.replace(data_path, target)
            except FileNotFoundError:
                return False
            sync_folder(self.root)
            self.record_verified(file, verified, is_durable)
        return True

    def content(self, file: str) -> str | None:
        """Returns the digest recorded for a file that is the recorded one by size, inode and mtime, as any node sees them."""
        found = (self._matching(file, record, 3) for record, _ in self._records(file))
        return next((verified.sha256 for verified in found if verified is not None), None)

    def is_own(self, file: str) -> bool:
        """Whether a finished file is one that was recorded; its ctime also changes when a kubelet sets its group."""
        found = [self._matching(file, record, 3) for record, _ in self._records(file)]
        return any(verified is not None and verified.source != FOUND_ON_VOLUME for verified in found)

    def _announce(self, data_path: Path, file: str, verified: Verified, is_durable: bool) -> None:
        """Records what is about to get the name, so that a kill after that leaves no file of unknown origin."""
        present = [record for record, is_publishing in self._records(file) if not is_publishing]
        former = present[0] if present else {}
        self._write_record(file, {**former, _PUBLISHING: _record(verified, data_path, is_durable)})

    def _matching(self, file: str, record: Mapping[str, Any], num_marks: int) -> Verified | None:
        """Returns what a record says if it is of the file that is there, by so many marks of its fingerprint."""
        try:
            if record["fingerprint"][:num_marks] != _fingerprint(self.path(file).stat())[:num_marks]:
                return None
            return Verified(str(record["sha256"]), str(record["source"]))
        except (OSError, KeyError, TypeError):
            return None

    def _records(self, file: str) -> list[tuple[dict[str, Any], bool]]:
        """Returns the record of a file, and one of what was about to take its place, which the second value tells."""
        try:
            record = json.loads(self._record_path(file).read_bytes())
            if not isinstance(record, dict):
                return []
            publishing = record.pop(_PUBLISHING, None)
        except (OSError, ValueError):
            return []
        return [(record, False), *([(publishing, True)] if isinstance(publishing, dict) else [])]

    def _write_record(self, file: str, record: Mapping[str, object]) -> None:
        write_durably(self._record_path(file), json.dumps(record, indent=1).encode())

    def _keep_replaced(self, file: str) -> None:
        target = self.path(file)
        stamp = time.strftime("%Y%m%dT%H%M%S")
        kept = self.state / "replaced" / f"{stamp}-{file}"
        if self._is_kept(target, kept.parent):
            return  # by a run that was killed before it went on
        for number in itertools.count(2):
            if not os.path.lexists(kept):
                break
            kept = kept.with_name(f"{stamp}.{number}-{file}")
        kept.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(target, kept)
        except OSError:
            # A folder, or a filesystem without hard links: the name is nobody's for a moment.
            os.rename(target, kept)

    @staticmethod
    def _is_kept(target: Path, folder: Path) -> bool:
        with suppress(OSError):
            status = target.lstat()
            return status.st_nlink > 1 and any(os.path.samestat(status, path.lstat()) for path in folder.iterdir())
        return False

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

    def free_bytes(self, limit_bytes: int | None = None) -> int:
        """Returns what may still be written: what the filesystem has free, within the size limit of an emptyDir."""
        status = os.statvfs(self.root)
        free_bytes = status.f_bavail * status.f_frsize
        if limit_bytes is None:
            return free_bytes
        used_bytes = 0
        for folder, _, names in os.walk(self.root):
            for name in names:
                # Another process may rename or remove what was just listed.
                with suppress(FileNotFoundError):
                    used_bytes += os.lstat(os.path.join(folder, name)).st_blocks * 512
        return min(free_bytes, max(0, limit_bytes - used_bytes))

    def require_space(self, missing_bytes: int, who_needs: str, limit_bytes: int | None) -> None:
        """Raises SpaceError with the figures when bytes that are still to be written do not fit."""
        free_bytes = self.free_bytes(limit_bytes)
        if missing_bytes > free_bytes:
            raise SpaceError(
                f"{who_needs} {missing_bytes} bytes more, but {self.root} has {free_bytes} free; "
                f"enlarge the volume by at least {human_bytes(missing_bytes - free_bytes)}."
            )

    def _record_path(self, file: str) -> Path:
        return self.state / "verified" / f"{file}.json"


def boot_id() -> str:
    """Returns what names this run of the kernel, empty where there is no such thing."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


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
        while True:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            # Another process may take it for what a dead one has left (leftovers.py).
            with suppress(FileNotFoundError):
                os.replace(temporary, path)
                break
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Makes a rename durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _record(verified: Verified, path: Path, is_durable: bool) -> dict[str, object]:
    return {
        "sha256": verified.sha256,
        "source": verified.source,
        "bootId": None if is_durable else boot_id(),
        "fingerprint": _fingerprint(path.stat()),
    }


def _fingerprint(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
