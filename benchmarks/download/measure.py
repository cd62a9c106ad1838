"""Runs a whole process and measures what it cost: wall time, processor time and memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LAUNCHER = Path(__file__).resolve().with_name("launcher.py")


class BenchError(Exception):
    """What keeps the benchmark from a result; the message says the remedy."""


@dataclass(frozen=True, slots=True)
class Run:
    """One process from start to exit.

    `started_at_seconds` is on the clock of nginx's log (Unix time). A maximum RSS below `rss_floor_bytes` cannot be seen.
    """

    started_at_seconds: float
    wall_seconds: float
    cpu_seconds: float
    max_rss_bytes: int
    rss_floor_bytes: int
    first_request_seconds: float | None = None


def measure(command: Sequence[str], environ: Mapping[str, str], folder: Path) -> Run:
    """Runs a command to its end, in a process group of its own that is killed when the benchmark is stopped.

    Raises:
        BenchError: it ended with something else than 0.
    """
    log_path, figures_path = folder / "contender.log", folder / "figures"
    figures_path.unlink(missing_ok=True)
    with open(log_path, "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(LAUNCHER), str(figures_path), *command],
            env=environ,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            code = process.wait()
        except BaseException:
            _end_group(process)
            raise
    if code:
        tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-20:])
        raise BenchError(f"{tail}\n'{' '.join(command[:3])} …' failed; its last lines are above.")
    started_at, wall, cpu, rss_kib, floor_kib = figures_path.read_text().split()
    return Run(float(started_at), float(wall), float(cpu), int(rss_kib) * 1024, int(floor_kib) * 1024)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kills launcher and command, and waits until neither writes into the temporary folder any more."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 2.0
    with suppress(ProcessLookupError):
        # Where nobody collects orphans, the dead command stays in the group; hence the deadline.
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.01)
