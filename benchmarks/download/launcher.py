"""Starts one command and writes what it cost. Imports next to nothing: the kernel counts its memory as the command's own.

Arguments: the file for the figures, then the command.
"""

from __future__ import annotations

import os
import sys
import time


def main() -> None:
    report, *command = sys.argv[1:]
    started_at, started = time.time(), time.perf_counter()
    pid = os.posix_spawnp(command[0], command, os.environ)
    _, status, usage = os.wait4(pid, 0)
    wall_seconds = time.perf_counter() - started
    with open("/proc/self/status") as own:
        # Not by getrusage, which counts the launcher's own starter.
        floor_kib = next(line.split()[1] for line in own if line.startswith("VmHWM:"))
    figures = [started_at, wall_seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss, floor_kib]
    with open(report, "w") as file:
        file.write(" ".join(map(str, figures)))
    sys.exit(os.waitstatus_to_exitcode(status) and 1)


if __name__ == "__main__":
    main()
