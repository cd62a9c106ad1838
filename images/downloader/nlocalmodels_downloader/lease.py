"""A lease per file on a volume that several pods share, so that one of them fetches the file and the others wait for it.

It only saves bandwidth: two holders at once cost a second download and nothing else. It asks nothing of the filesystem's
locks and clocks: link(2) creates a generation, a live holder changes it every beat, and whoever waits times that itself.

MODEL_PATH/.nlocalmodels/leases/<key>.<generation>   the highest generation is the lease
MODEL_PATH/.nlocalmodels/leases/.<key>.<token>.new   what a process is about to write
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from nlocalmodels_downloader.errors import StoppedError
from nlocalmodels_downloader.progress import human_bytes

log = logging.getLogger(__name__)

_GENERATION = re.compile(r"(.+)\.(\d{1,15})")
_MAX_ATTEMPTS = 5
_JOIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Record:
    """What a generation's file says. One that cannot be read, or is garbage after a crash, has nobody's token."""

    generation: int
    token: str = ""
    nonce: int = 0
    holder: str = "unknown"
    present_bytes: int = 0


class Lease:
    """The right to fetch one file. `works` is False after an OSError of a volume where there can be no leases."""

    def __init__(self, folder: Path, key: str, holder: str, ttl_seconds: float = 90.0, beat_seconds: float = 10.0) -> None:
        """
        Args:
            holder: a name that this process's former life had as well and no other live process has: its workspace's.
            ttl_seconds: how long a lease stays unchanged until its holder counts as dead; above what NFS clients cache.
        """
        self.key = key
        self.works = True
        self._folder = folder
        self._name = holder
        self._ttl_seconds = ttl_seconds
        self._beat_seconds = beat_seconds
        # Errors of link and rename over NFS prove nothing, names come back: only this tells what is really ours.
        self._token = secrets.token_hex(16)
        self._nonce = 0
        self._generation: int | None = None
        self._watched: tuple[int, str, int] | None = None
        self._watched_since = 0.0

    def try_acquire(self) -> bool:
        """Takes the lease if nobody has it, its holder is dead, or the holder was this pod's former life.

        Deadness shows only after `ttl_seconds` of calls on the same object.
        """
        try:
            acquired, self.works = self._try_acquire(), True
        except OSError as error:
            log.warning("leases do not work in %s (%s)", self._folder, error)
            acquired = self.works = False
        return acquired

    def holder(self) -> str | None:
        """Returns who has the lease, None if nobody has or it cannot be told."""
        newest = self._newest_or_none()
        return newest.holder if newest else None

    def present_bytes(self) -> int | None:
        """Returns how much the holder says it has."""
        newest = self._newest_or_none()
        return newest.present_bytes if newest else None

    def is_mine(self) -> bool:
        """Whether no other process has taken the lease meanwhile, as one does when this one was held up for long."""
        return self._generation is not None and self._is_mine(self._newest_or_none())

    def release(self) -> None:
        """Gives the lease back. One that another process has taken over is left alone."""
        generation, self._generation = self._generation, None
        if generation is None:
            return
        try:
            if (record := self._read(generation)) is not None and record.token == self._token:
                self._path(generation).unlink(missing_ok=True)
            self._temporary_path().unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be removed (%s); others wait until it runs out", self._path(generation), error)

    @contextmanager
    def held(self, present_bytes: Callable[[], int]) -> Iterator[None]:
        """Keeps an acquired lease alive while the block runs, and gives it back at the end.

        Args:
            present_bytes: called in another thread; when it does not grow for long, those who wait fetch for themselves.
        """
        ended = threading.Event()

        def keep_alive() -> None:
            while True:
                try:
                    if not self._beat(present_bytes()):
                        log.warning("the lease on %s has gone to another process; both go on", self.key)
                        return
                except OSError as error:
                    log.warning("the lease on %s cannot be renewed now (%s)", self.key, error)
                if ended.wait(self._beat_seconds):
                    return

        thread = threading.Thread(target=keep_alive, name=f"lease-{self.key[:8]}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            # A beat that hangs on a dead file server must not hold up the end of the process.
            thread.join(_JOIN_SECONDS)
            self.release()

    def _try_acquire(self) -> bool:
        self._folder.mkdir(parents=True, exist_ok=True)
        for _ in range(_MAX_ATTEMPTS):
            newest = self._newest()
            if self._is_mine(newest):
                return True
            if newest is not None and not self._may_take_over(newest):
                return False
            acquired = self._link(newest.generation + 1 if newest else 1)
            if acquired is not None:
                return acquired
        return False

    def _may_take_over(self, newest: _Record) -> bool:
        if newest.token and newest.holder == self._name:
            return True
        now, sign_of_life = time.monotonic(), (newest.generation, newest.token, newest.nonce)
        if sign_of_life != self._watched:
            self._watched, self._watched_since = sign_of_life, now
        return now - self._watched_since >= self._ttl_seconds

    def _link(self, generation: int) -> bool | None:
        """Returns whether the generation is this process's, None when things have changed meanwhile."""
        self._write_temporary(present_bytes=0)
        linking: OSError | None = None
        try:
            os.link(self._temporary_path(), self._path(generation))
        except OSError as error:
            linking = error
        self._temporary_path().unlink(missing_ok=True)
        newest = self._newest()
        if newest is not None and (newest.generation, newest.token) == (generation, self._token):
            self._generation = generation
            self._remove_leftovers(generation)
            return True
        if linking is None:
            # A newer one stood already, but the listing was older than it.
            self._path(generation).unlink(missing_ok=True)
        elif linking.errno not in (errno.EEXIST, errno.ENOENT, errno.ESTALE):
            raise linking
        return None

    def _remove_leftovers(self, generation: int) -> None:
        """Removes former generations, and what those have left who were killed while writing."""
        for name in os.listdir(self._folder):
            is_former = (match := _GENERATION.fullmatch(name)) and match[1] == self.key and int(match[2]) < generation
            if is_former or name.startswith(f".{self.key}."):
                # Not being removed now is no reason to do without the lease.
                with suppress(OSError):
                    (self._folder / name).unlink()

    def _beat(self, present_bytes: int) -> bool:
        if self._generation is None or not self._is_mine(self._newest()):
            return False
        self._nonce += 1
        self._write_temporary(present_bytes)
        os.replace(self._temporary_path(), self._path(self._generation))
        return True

    def _write_temporary(self, present_bytes: int) -> None:
        record = {"holder": self._name, "token": self._token, "nonce": self._nonce, "presentBytes": present_bytes}
        self._temporary_path().write_text(json.dumps(record))

    def _is_mine(self, newest: _Record | None) -> bool:
        return newest is not None and (newest.generation, newest.token) == (self._generation, self._token)

    def _newest_or_none(self) -> _Record | None:
        try:
            return self._newest()
        except OSError as error:
            log.warning("the lease on %s cannot be read (%s)", self.key, error)
            return None

    def _newest(self) -> _Record | None:
        generation = 0
        for _ in range(_MAX_ATTEMPTS):
            generation = self._newest_generation()
            if not generation:
                return None
            if (record := self._read(generation)) is not None:
                return record
        # The listing is a cached one. Taking it over will fail on what is really there.
        return _Record(generation)

    def _newest_generation(self) -> int:
        names = os.listdir(self._folder) if self._folder.is_dir() else []
        matches = [match for name in names if (match := _GENERATION.fullmatch(name)) and match[1] == self.key]
        return max((int(match[2]) for match in matches), default=0)

    def _read(self, generation: int) -> _Record | None:
        """Returns what the file says now, None if it has gone. Opening it anew makes an NFS client ask the server."""
        try:
            said = json.loads(self._path(generation).read_bytes())
            return _Record(generation, str(said["token"]), int(said["nonce"]), str(said["holder"]), int(said["presentBytes"]))
        except (ValueError, KeyError, TypeError):
            return _Record(generation)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return None
            raise

    def _path(self, generation: int) -> Path:
        return self._folder / f"{self.key}.{generation}"

    def _temporary_path(self) -> Path:
        return self._folder / f".{self.key}.{self._token}.new"


class Turn(Enum):
    """What came of waiting."""

    DONE = "another process has published the file"
    MINE = "the lease is this process's"
    PRIVATE = "do without a lease"


def wait_for_turn(
    lease: Lease,
    is_done: Callable[[], bool],
    stop: threading.Event,
    budget_seconds: float,
    on_wait: Callable[[str], None],
    poll_seconds: float = 2.0,
    report_seconds: float = 30.0,
) -> Turn:
    """Waits until there is nothing to do or nobody else does it.

    Args:
        budget_seconds: how long to wait while the holder gets no further than anyone was seen to be.
        on_wait: gets a sentence at once and every `report_seconds`.

    Raises:
        StoppedError: the stop event was set.
    """
    most_bytes, progressed, reported = -1, time.monotonic(), float("-inf")
    while True:
        if stop.is_set():
            raise StoppedError("stopped while another process fetches the file; the next run goes on.")
        if is_done():
            return Turn.DONE
        if lease.try_acquire():
            if not is_done():
                return Turn.MINE
            # It was published, and its lease given back, between the two questions.
            lease.release()
            return Turn.DONE
        if not lease.works:
            return Turn.PRIVATE
        now, present_bytes, holder = time.monotonic(), lease.present_bytes() or 0, lease.holder()
        if present_bytes > most_bytes:
            most_bytes, progressed = present_bytes, now
        if now - progressed >= budget_seconds:
            log.warning("%s has come no further for %.0f s; fetching without it", holder, now - progressed)
            return Turn.PRIVATE
        if now - reported >= report_seconds and holder is not None:
            reported = now
            on_wait(f"{holder} is fetching it and has {human_bytes(present_bytes)}; waiting for it")
        stop.wait(poll_seconds)


def leased_keys(folder: Path) -> set[str]:
    """Returns the keys that somebody has a lease on, or had one when it was killed."""
    names = os.listdir(folder) if folder.is_dir() else []
    return {match[1] for name in names if (match := _GENERATION.fullmatch(name))}
