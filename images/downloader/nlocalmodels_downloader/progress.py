"""How far a model is: its counters, its rate, and the words for both."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

log = logging.getLogger(__name__)


class ModelProgress:
    """Counts the bytes of one model. Threads add to it, the reporter reads it."""

    def __init__(self, model_id: str, size_bytes: int, resumed_bytes: int) -> None:
        self.model_id = model_id
        self.size_bytes = size_bytes
        self._lock = threading.Lock()
        self._present_bytes = resumed_bytes
        self._furthest_bytes = resumed_bytes
        self._received_bytes = 0
        self.num_retries = 0

    def received(self, num_bytes: int) -> None:
        with self._lock:
            self._present_bytes += num_bytes
            self._furthest_bytes = max(self._furthest_bytes, self._present_bytes)
            self._received_bytes += num_bytes

    def restarted(self, present_bytes: int) -> None:
        """Says that bytes counted before have to come again."""
        with self._lock:
            self._present_bytes = present_bytes

    def total_bytes(self) -> int:
        """Returns all bytes that came over the network in this run, also those that came twice."""
        with self._lock:
            return self._received_bytes

    def present_bytes(self) -> int:
        with self._lock:
            return self._present_bytes

    def furthest_bytes(self) -> int:
        """Returns the most bytes that were ever there at once: bytes that come again are no progress."""
        with self._lock:
            return self._furthest_bytes

    def retrying(self, reason: str, wait_seconds: float) -> None:
        with self._lock:
            self.num_retries += 1
        log.warning("%s: %s Trying again in %.1f s.", self.model_id, reason, wait_seconds)


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes at one moment, of one model or of several together."""

    present_bytes: int
    size_bytes: int
    bytes_per_second: float

    @property
    def seconds_left(self) -> float | None:
        """Returns the time left at this rate, None when no byte came."""
        if self.bytes_per_second <= 0:
            return None
        return max(0, self.size_bytes - self.present_bytes) / self.bytes_per_second


class Rate:
    """Bytes per second over the last interval."""

    def __init__(self, now_seconds: float) -> None:
        self._last_seconds, self._last_bytes = now_seconds, 0
        self.bytes_per_second = 0.0

    def update(self, now_seconds: float, num_bytes: int) -> None:
        self.bytes_per_second = (num_bytes - self._last_bytes) / max(now_seconds - self._last_seconds, 1e-6)
        self._last_seconds, self._last_bytes = now_seconds, num_bytes


@contextmanager
def calling_every(interval_seconds: float, call: Callable[[], None]) -> Iterator[None]:
    """Calls in a thread of its own while the block runs."""
    done = threading.Event()

    def work() -> None:
        while not done.wait(interval_seconds):
            call()

    thread = threading.Thread(target=work, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def progress_line(model_id: str, present_bytes: int, size_bytes: int, bytes_per_second: float) -> str:
    """Returns one line: bytes, share, rate and the time left at that rate."""
    seconds_left = Span(present_bytes, size_bytes, bytes_per_second).seconds_left
    left = "no bytes coming" if seconds_left is None else f"{human_seconds(seconds_left)} left"
    share = present_bytes * 100 // max(size_bytes, 1)
    return (
        f"{model_id}: {human_bytes(present_bytes)} of {human_bytes(size_bytes)} ({share} %), "
        f"{human_bytes(bytes_per_second)}/s, {left}"
    )


def human_bytes(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.2f} GiB"


def human_seconds(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
