"""How many connections a file gets: two at first, more as long as each step brings bytes faster, fewer when asked."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress

_FIRST_CONNECTIONS = 2
# The first step is larger: that two connections bring bytes with the machine at ease is sign enough for eight.
_FIRST_FACTOR = 4
_CHECK_SECONDS = 0.2
# How long new connections may take to their first bytes and up to speed, over half the earth.
_PATIENCE_SECONDS = 2.0
_BACK_OFF_SECONDS = 1.0
# A step that brings less than this is not worth its connections, and taken back.
_LEAST_GAIN = 1.25
# Beyond this share of the cores, connections take time from one another: the machine is the limit, not the network.
_BUSY_SHARE = 0.5
# Half of that share is enough when it is by connections that each take this much of a core: they do not wait for the network.
_BUSY_CONNECTION_LOAD = 0.25


class Governor:
    """Decides from measured rates. Pure: time, bytes and CPU seconds are told to it."""

    def __init__(self, max_connections: int, num_cores: int) -> None:
        self._max_connections = max_connections
        self._busy_load = num_cores * _BUSY_SHARE
        self._num_connections = self._num_before = min(_FIRST_CONNECTIONS, max_connections)
        self._rate_before = 0.0
        self._stepped_seconds = 0.0
        self._is_settled = False
        self._last: tuple[float, int, float] | None = None

    def wanted(self, now_seconds: float, received_bytes: int, cpu_seconds: float) -> int:
        """Returns how many connections there should be, after what has come until now."""
        if self._last is None:
            self._last = (now_seconds, received_bytes, cpu_seconds)
        elapsed = now_seconds - self._last[0]
        if elapsed < _CHECK_SECONDS or self._is_settled:
            return self._num_connections
        rate = (received_bytes - self._last[1]) / elapsed
        load = (cpu_seconds - self._last[2]) / elapsed
        self._last = (now_seconds, received_bytes, cpu_seconds)
        if rate > 0:
            is_each_busy = load > self._num_connections * _BUSY_CONNECTION_LOAD
            self._judge(now_seconds, rate, load > self._busy_load * (0.5 if is_each_busy else 1.0))
        return self._num_connections

    def _judge(self, now_seconds: float, rate: float, is_busy: bool) -> None:
        """Makes the next step, takes the last one back, or gives it more time."""
        pays = rate >= self._rate_before * _LEAST_GAIN
        if is_busy or (pays and self._num_connections == self._max_connections):
            self._is_settled = True
        elif pays:
            factor = 2 if self._rate_before else _FIRST_FACTOR
            self._num_before, self._rate_before, self._stepped_seconds = self._num_connections, rate, now_seconds
            self._num_connections = min(factor * self._num_connections, self._max_connections)
        elif now_seconds - self._stepped_seconds >= _PATIENCE_SECONDS:
            self._is_settled = True
        if self._is_settled and not pays:
            self._num_connections = self._num_before

    def back_off(self) -> None:
        """Halves the connections for good, for a server that said it has too many requests."""
        self._is_settled = True
        self._num_connections = max(1, self._num_connections // 2)


class Crew:
    """Threads that each call `work` with the number of connections until it returns False."""

    def __init__(self, work: Callable[[int], bool], max_connections: int) -> None:
        self._work = work
        self._governor = Governor(max_connections, len(os.sched_getaffinity(0)))
        self._outcomes: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._wanted = 0
        self._num_started = 0
        self._has_ended = False
        self.num_running = 0
        self._backed_off_seconds = float("-inf")

    def start(self) -> None:
        self._grow(0)

    def tick(self, received_bytes: int, seconds: float) -> BaseException | None:
        """Waits for a thread's end for a while, and returns its error; starts more threads when that pays."""
        outcome: BaseException | None = None
        with suppress(queue.Empty):
            outcome = self._outcomes.get(timeout=seconds)
            self.num_running -= 1
            # There was nothing left for one; there will be nothing for more.
            self._has_ended = True
        if not self._has_ended:
            self._grow(received_bytes)
        return outcome

    def back_off(self) -> None:
        """Lets about half of the threads end after what they are at. One overloaded moment counts once, whoever tells of it."""
        now_seconds = time.monotonic()
        if now_seconds - self._backed_off_seconds < _BACK_OFF_SECONDS:
            return
        self._backed_off_seconds = now_seconds
        self._governor.back_off()
        self._wanted = self._governor.wanted(now_seconds, 0, 0.0)

    def _grow(self, received_bytes: int) -> None:
        self._wanted = self._governor.wanted(time.monotonic(), received_bytes, time.process_time())
        while self._num_started < self._wanted:
            threading.Thread(target=self._run, args=(self._num_started,), name="connection", daemon=True).start()
            self._num_started += 1
            self.num_running += 1

    def _run(self, number: int) -> None:
        try:
            while number < self._wanted and self._work(self._wanted):
                pass
        except BaseException as error:
            self._outcomes.put(error)
        else:
            self._outcomes.put(None)
