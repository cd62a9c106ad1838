"""When a process that ended is started again, and when no more. Pure."""

from __future__ import annotations

_MAX_LOAD_ATTEMPTS = 3
_FIRST_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS = 0.5, 30.0
_STABLE_SECONDS = 60.0


class Restarts:
    """Waits twice as long each time, until a process has served for a while; gives up a file that ends three loads in a row."""

    def __init__(self) -> None:
        self.num_failed_loads = 0
        self._backoff_seconds = _FIRST_BACKOFF_SECONDS

    def next_wait_seconds(self, served_seconds: float | None) -> float | None:
        """Returns how long to wait after an end, None to give up.

        Args:
            served_seconds: how long the process has served; None: it ended while loading.
        """
        self.num_failed_loads = 0 if served_seconds is not None else self.num_failed_loads + 1
        if self.num_failed_loads >= _MAX_LOAD_ATTEMPTS:
            return None
        is_stable = served_seconds is not None and served_seconds > _STABLE_SECONDS
        self._backoff_seconds = _FIRST_BACKOFF_SECONDS if is_stable else min(_MAX_BACKOFF_SECONDS, self._backoff_seconds * 2)
        return self._backoff_seconds
