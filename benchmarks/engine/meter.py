"""Takes a measurement, and knows whether anything else disturbed it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, TypeVarTuple

from machine import busy_seconds

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# A measurement during which others took more of a core is repeated, up to so many times.
DISTURBED_SHARE = 0.15
MAX_ATTEMPTS = 3


def say(text: str) -> None:
    sys.stderr.write(f"[bench-engine] {text}\n")
    sys.stderr.flush()


class Meter:
    """`client_share` is the largest share of one core that this process took, `others_shares` what in each measurement
    neither it nor the servers took."""

    def __init__(self, servers_cpu_seconds: Callable[[], float]) -> None:
        self._servers_cpu_seconds = servers_cpu_seconds
        self._seed = 0
        self.client_share = 0.0
        self.others_shares: list[float] = []

    def take(self, scenario: Callable[[*Ts, int], Coroutine[Any, Any, T]], *arguments: *Ts) -> T:
        """Returns what the scenario brings with these arguments and a new seed. While others use the processor it is
        repeated, and the least disturbed one counts."""
        shares: list[float] = []
        values: list[T] = []
        while not values or (shares[-1] > DISTURBED_SHARE and len(values) < MAX_ATTEMPTS):
            self._seed += 1
            value, others = self._once(scenario(*arguments, self._seed))
            values.append(value)
            shares.append(others)
        least = min(shares)
        self.others_shares.append(least)
        if least > DISTURBED_SHARE:
            say(f"the next figure is disturbed: others took {least:.0%} of a core in the best of {len(values)} attempts")
        return values[shares.index(least)]

    def _once(self, work: Coroutine[Any, Any, T]) -> tuple[T, float]:
        servers, client, busy, started = self._clocks()
        value = asyncio.run(work)
        servers_after, client_after, busy_after, ended = self._clocks()
        seconds = ended - started
        client_seconds = client_after - client
        self.client_share = max(self.client_share, client_seconds / seconds)
        others_seconds = busy_after - busy - (servers_after - servers) - client_seconds
        return value, max(0.0, others_seconds / seconds)

    def _clocks(self) -> tuple[float, float, float, float]:
        return self._servers_cpu_seconds(), time.process_time(), busy_seconds(), time.perf_counter()
