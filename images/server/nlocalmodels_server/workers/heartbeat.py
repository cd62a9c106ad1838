"""Whether a process hangs: it has something to do and gives no sign of life. Pure; the caller says how much time has passed."""

from __future__ import annotations

from enum import Enum

# Reading a file from a slow volume takes so long at least, and then this long for each so many bytes.
_LOAD_SECONDS = 600.0
_LOAD_BYTES_PER_SECOND = 10 * 1024**2


class Activity(Enum):
    """What a process can hang in; each has a thread or a time of its own."""

    LOADING = "loading"
    TOKENIZING = "taking requests in"
    COMPUTING = "computing"


class Heartbeat:
    """Counts, for each activity under way, the seconds without a sign of life.

    Args:
        hang_seconds: the bound for requests.
        file_bytes: the size of what it loads, which has a bound of its own.
    """

    def __init__(self, hang_seconds: float, file_bytes: int = 0) -> None:
        load_seconds = max(_LOAD_SECONDS, hang_seconds) + file_bytes / _LOAD_BYTES_PER_SECOND
        self._bounds = dict.fromkeys(Activity, hang_seconds) | {Activity.LOADING: load_seconds}
        self._silent_seconds: dict[Activity, float] = {}

    def expect(self, activity: Activity, is_under_way: bool) -> None:
        """Says whether there is something to do; silence counts from the moment on when there is."""
        if not is_under_way:
            self._silent_seconds.pop(activity, None)
        else:
            self._silent_seconds.setdefault(activity, 0.0)

    def hear(self, activity: Activity) -> None:
        """Notes a sign of life."""
        if activity in self._silent_seconds:
            self._silent_seconds[activity] = 0.0

    def pass_time(self, seconds: float) -> None:
        for activity in self._silent_seconds:
            self._silent_seconds[activity] += seconds

    def find_hang(self, times: float = 1.0) -> str | None:
        """Returns what the process hangs in, for so many times the bound, as words after its name; None if it lives."""
        for activity, seconds in self._silent_seconds.items():
            if seconds >= self._bounds[activity] * times:
                return f"gave no sign of life for {seconds:.0f} s while {activity.value}"
        return None
