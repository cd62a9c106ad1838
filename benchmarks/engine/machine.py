"""Who used the processor: a process, a server with its workers, or the whole machine. From Linux's /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def process_cpu_seconds(pid: int) -> float:
    """Returns the processor time of a process with all its threads, to the nanosecond, by the kernel's clock of it."""
    return time.clock_gettime(~pid << 3 | 2)


def sessions_cpu_seconds(leaders: Collection[int]) -> float:
    """Returns the processor time of all processes in the sessions of these leaders, to 10 ms."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name in brackets may hold anything; what follows are numbers.
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[3]) in leaders:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS_PER_SECOND


def busy_seconds() -> float:
    """Returns the processor time that was not idle, on all cores, with what a hypervisor took for other machines."""
    with open("/proc/stat") as file:
        user, nice, system, _idle, _iowait, *interrupts_and_steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + sum(interrupts_and_steal)) / _TICKS_PER_SECOND
