"""Says how far each model is, in lines fit for `kubectl logs`."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

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
        self.num_retries += 1
        log.warning("%s: %s Trying again in %.1f s.", self.model_id, reason, wait_seconds)

    @contextmanager
    def reported_every(self, interval_seconds: float) -> Iterator[None]:
        """Logs a line per interval while the block runs."""
        done = threading.Event()
        thread = threading.Thread(target=self._report, args=(interval_seconds, done), name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _report(self, interval_seconds: float, done: threading.Event) -> None:
        last_seconds, last_bytes = time.monotonic(), self.total_bytes()
        while not done.wait(interval_seconds):
            now_seconds, now_bytes = time.monotonic(), self.total_bytes()
            rate = (now_bytes - last_bytes) / (now_seconds - last_seconds)
            log.info("%s", progress_line(self.model_id, self.present_bytes(), self.size_bytes, rate))
            last_seconds, last_bytes = now_seconds, now_bytes


def progress_line(model_id: str, present_bytes: int, size_bytes: int, bytes_per_second: float) -> str:
    """Returns one line: bytes, share, rate and the time left at that rate."""
    left = "no bytes coming"
    if bytes_per_second > 0:
        left = f"{human_seconds((size_bytes - present_bytes) / bytes_per_second)} left"
    share = present_bytes * 100 // size_bytes
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
