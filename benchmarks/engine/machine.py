"""Who used the processor: a process, a server with its workers, or the whole machine. From Linux's /proc."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class _Process:
    parent: int
    cpu_ticks: int


def process_cpu_seconds(pid: int) -> float:
    """Returns the processor time of a process with all its threads, to the nanosecond, by the kernel's clock of it."""
    return time.clock_gettime(~pid << 3 | 2)


def families_cpu_seconds(pids: Collection[int]) -> float:
    """Returns the processor time of these processes and all their descendants that live, to 10 ms."""
    table = _processes()
    return sum(table[pid].cpu_ticks for pid in _with_descendants(pids, table)) / _TICKS_PER_SECOND


def descendants(pid: int) -> list[int]:
    """Returns the processes that a process has started, and those that they have started."""
    return sorted(_with_descendants([pid], _processes()) - {pid})


def _processes() -> dict[int, _Process]:
    table = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name in brackets may hold anything; what follows are a letter and numbers.
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        table[int(path.parent.name)] = _Process(int(fields[1]), int(fields[11]) + int(fields[12]))
    return table


def _with_descendants(pids: Collection[int], table: dict[int, _Process]) -> set[int]:
    found = {pid for pid in pids if pid in table}
    # A worker may be a session and a group of its own, but not without a parent.
    while more := {pid for pid, process in table.items() if process.parent in found} - found:
        found |= more
    return found


def busy_seconds() -> float:
    """Returns the processor time that was not idle, on all cores, with what a hypervisor took for other machines."""
    with open("/proc/stat") as file:
        user, nice, system, _idle, _iowait, *interrupts_and_steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + sum(interrupts_and_steal)) / _TICKS_PER_SECOND
