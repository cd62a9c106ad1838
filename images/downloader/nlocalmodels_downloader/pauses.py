"""How long a host has asked to be left alone, by Retry-After (RFC 9110 section 10.2.3), for all who would ask it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

# So that a wait ends soon after a stop that this module is not told of.
_SLICE_SECONDS = 0.2


class Pauses:
    """One for all connections of a process. `num_waiting` counts who waits at present.

    Args:
        max_seconds: says how long a host may hold everybody up.
    """

    def __init__(self, max_seconds: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self._max_seconds = max_seconds
        self._clock = clock
        self._until_seconds: dict[object, float] = {}
        self._changed = threading.Condition()
        self.num_waiting = 0

    def asked_for(self, host: object, seconds: float) -> None:
        """Notes that a host wants nothing to be asked for a while. The longest wish counts."""
        until_seconds = self._clock() + min(seconds, self._max_seconds())
        with self._changed:
            self._until_seconds[host] = max(until_seconds, self._until_seconds.get(host, until_seconds))

    def wait(self, host: object, is_over: Callable[[], bool]) -> None:
        """Returns when the host may be asked again, or soon after `is_over` says that nobody wants to any more."""
        with self._changed:
            self.num_waiting += 1
            try:
                while (left_seconds := self._until_seconds.get(host, 0.0) - self._clock()) > 0 and not is_over():
                    self._changed.wait(min(left_seconds, _SLICE_SECONDS))
            finally:
                self.num_waiting -= 1
