"""How fast bytes may come over the network, over all connections of a process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

# What was not used for a while may be made up for, but no longer than this.
_BURST_SECONDS = 0.25
# The waits of a connection are about this long, times the number of connections.
_PIECE_SECONDS = 0.1
_LEAST_PIECE_BYTES = 1024


class TokenBucket:
    """Says how long to wait for bytes that have come. Pure: time is told to it."""

    def __init__(self, bytes_per_second: int) -> None:
        self._bytes_per_second = bytes_per_second
        self._most_bytes = bytes_per_second * _BURST_SECONDS
        self._free_bytes = 0.0
        self._last_seconds: float | None = None

    def take(self, num_bytes: int, now_seconds: float) -> float:
        """Takes bytes that have come, and returns the seconds until all that came before and these are within the rate."""
        if self._last_seconds is not None:
            new_bytes = (now_seconds - self._last_seconds) * self._bytes_per_second
            self._free_bytes = min(self._most_bytes, self._free_bytes + new_bytes)
        self._last_seconds = now_seconds
        self._free_bytes -= num_bytes
        return max(0.0, -self._free_bytes / self._bytes_per_second)


class Throttle:
    """Holds up whoever has received bytes, so that all together keep to a rate.

    A reader that waits leaves the bytes in the socket's buffer, and so makes the sender wait.
    """

    def __init__(self, bytes_per_second: int, stop: threading.Event, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            stop: ends every wait.
        """
        # More at once would come in bursts.
        self.piece_bytes = max(_LEAST_PIECE_BYTES, int(bytes_per_second * _PIECE_SECONDS))
        self._bucket = TokenBucket(bytes_per_second)
        self._stop = stop
        self._clock = clock
        self._lock = threading.Lock()

    def wait(self, num_bytes: int) -> float:
        """Waits until the bytes are within the rate, and returns the seconds that were to be waited."""
        with self._lock:
            seconds = self._bucket.take(num_bytes, self._clock())
        if seconds > 0:
            self._stop.wait(seconds)
        return seconds
