"""Takes in GGUF files that a person copies onto the volume, as into the uploader's pod with `kubectl cp`.

MODEL_PATH/.nlocalmodels/incoming/<file>   what was copied, until it is checked
MODEL_PATH/.nlocalmodels/incoming/DONE     says that nothing more comes
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from nlocalmodels_downloader.errors import CorruptError, ExhaustedError, StoppedError
from nlocalmodels_downloader.gguf import check_gguf
from nlocalmodels_downloader.leftovers import discard_unnamed
from nlocalmodels_downloader.manifest import ManifestError, manifest_paths, read_manifest
from nlocalmodels_downloader.partial import naming_space_errors
from nlocalmodels_downloader.progress import human_bytes
from nlocalmodels_downloader.settings import Settings
from nlocalmodels_downloader.volume import FOUND_ON_VOLUME, Verified, Volume, sha256_of

log = logging.getLogger(__name__)

# Polled, since network filesystems tell nobody of a change.
POLL_SECONDS = 2.0
REPORT_SECONDS = 30.0
_DONE = "DONE"
# What is kept beside a file has its name and more; names have 255 bytes at most.
_MAX_NAME_BYTES = 200


@dataclass(frozen=True, slots=True)
class Received:
    """What became of a file. One with a `problem` is where it was copied to, every other one is published."""

    file: str
    size_bytes: int | None = None
    sha256: str | None = None
    problem: str | None = None


class Receiver:
    """Receives into one volume. What it publishes is a person's: never pruned."""

    def __init__(self, model_path: Path, settings: Settings, stop: Event) -> None:
        self._volume = Volume(model_path, settings.owner)
        self._is_durable = settings.is_durable
        self._stop = stop
        self.incoming = self._volume.state / "incoming"
        self.done_path = self.incoming / _DONE

    def open(self) -> None:
        """Makes the folder that files can be copied into.

        Raises:
            SpaceError: the volume cannot be written.
        """
        self._volume.create()
        with naming_space_errors(self._volume.root):
            self.incoming.mkdir(parents=True, exist_ok=True)
            # Also for who copies as another user of the volume's group. Another user's folder stays as it is.
            with suppress(PermissionError):
                self.incoming.chmod(0o775)

    def wait(self, timeout_seconds: float | None) -> None:
        """Returns when DONE is there.

        Args:
            timeout_seconds: None waits for ever.

        Raises:
            ExhaustedError: time is up.
            StoppedError: the stop event was set.
        """
        started_seconds = reported_seconds = time.monotonic()
        reported = (0, 0)
        while not os.path.lexists(self.done_path):
            now_seconds = time.monotonic()
            if timeout_seconds is not None and now_seconds - started_seconds >= timeout_seconds:
                raise ExhaustedError(
                    f"{self.done_path} has not come in {timeout_seconds:g} s. What was copied is kept; run again and touch it, "
                    "or wait longer with --timeout-seconds."
                )
            if now_seconds - reported_seconds >= REPORT_SECONDS and (present := self._present()) != reported:
                log.info("%d files are there so far, %s; waiting for %s", present[0], human_bytes(present[1]), self.done_path)
                reported, reported_seconds = present, now_seconds
            left_seconds = POLL_SECONDS
            if timeout_seconds is not None:
                left_seconds = min(left_seconds, max(0.0, started_seconds + timeout_seconds - now_seconds))
            if self._stop.wait(left_seconds):
                raise StoppedError("stopped while waiting for files; what was copied is kept, start again to go on.")

    def take_in(self) -> Iterator[Received]:
        """Checks and publishes what is there, one by one, then removes DONE.

        Raises:
            StoppedError: the stop event was set; the rest is taken in by the next run.
            SpaceError: the volume cannot be written.
        """
        with naming_space_errors(self._volume.root):
            names = sorted(os.listdir(self.incoming))
        for name in names:
            if name != _DONE:
                yield self._take_in(name)
        discard_unnamed(self._volume)
        with naming_space_errors(self._volume.root):
            self.done_path.unlink(missing_ok=True)

    def _present(self) -> tuple[int, int]:
        """Returns how many files have been copied, and their bytes."""
        with suppress(OSError):
            sizes = [path.lstat().st_size for path in self.incoming.iterdir()]
            return len(sizes), sum(sizes)
        return 0, 0

    def _take_in(self, name: str) -> Received:
        path = self.incoming / name
        try:
            size_bytes = path.lstat().st_size
            if (problem := _unfit(path)) is not None:
                return Received(name, size_bytes, problem=problem)
            log.info("%s: checking %s", name, human_bytes(size_bytes))
            check_gguf(path, name)
            digest = sha256_of(path, self._stop)
        except CorruptError as error:
            return Received(name, size_bytes, problem=f"{error} It stays in {self.incoming}.")
        except OSError as error:
            return Received(name, problem=f"cannot be read ({error.strerror}); copy it again.")
        if (problem := self._not_to_be_replaced(name, digest)) is not None:
            return Received(name, size_bytes, digest, problem)
        if not self._publish(path, digest):
            return Received(name, size_bytes, digest, "was removed while it was checked; copy it again.")
        return Received(name, size_bytes, digest)

    def _publish(self, path: Path, digest: str) -> bool:
        with naming_space_errors(self._volume.root):
            if (there := self._volume.verified(path.name)) is not None and there.sha256 == digest:
                log.info("%s: the same file is there already", path.name)
                path.unlink()
                return True
            if self._is_durable:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        return self._volume.publish(path, path.name, Verified(digest, FOUND_ON_VOLUME), self._is_durable)

    def _not_to_be_replaced(self, name: str, digest: str) -> str | None:
        """Returns why a file of this name must be left to the downloader, None if it may be published.

        With the very digest that is declared, it may: that repairs a volume.
        """
        for path in manifest_paths(self._volume.state / "sets"):
            with suppress(ManifestError, OSError):
                declared = [file for entry in read_manifest(path) for file in entry.files if file.file == name]
                if declared and declared[0].sha256 != digest:
                    return f"set {path.stem} declares a file of this name with sha256 {declared[0].sha256}; rename yours."
                if declared:
                    return None
        recorded = self._volume.recorded(name)
        if self._volume.is_own(name) and (recorded is None or recorded.sha256 != digest):
            return "the downloader has published a file of this name; rename yours."
        return None


def _unfit(path: Path) -> str | None:
    """Returns why a file cannot be a model, by its name and kind."""
    name = path.name
    if not name.isprintable() or name.startswith(".") or len(os.fsencode(name)) > _MAX_NAME_BYTES:
        return f"its name is hidden, not printable or longer than {_MAX_NAME_BYTES} bytes; rename it."
    if not stat.S_ISREG(path.lstat().st_mode):
        return "no plain file; copy the files themselves, one by one."
    if not name.lower().endswith(".gguf"):
        return f"{path.suffix or 'a file without .gguf'} is refused, only GGUF is served; convert it to GGUF."
    return None
