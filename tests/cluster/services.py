"""Processes that outlive the command that starts them: each a session of its own, its log in a file, stopped by its pid."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.commands import ClusterError, direct_environ, wait_until

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# What the kernel calls the process is kept with the pid, since pids are used again: when it began, in which boot.
LAUNCH = """
echo "$$ $(cut -d' ' -f22 /proc/$$/stat) $(cat /proc/sys/kernel/random/boot_id)" >"$0.new" && mv "$0.new" "$0" && exec "$@"
"""


@dataclass(frozen=True)
class Service:
    """A program that runs in the background; `folder` holds its log and its pid."""

    name: str
    command: tuple[str, ...]
    folder: Path

    @property
    def log_path(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def pid_path(self) -> Path:
        return self.folder / f"{self.name}.pid"

    def pid(self) -> int | None:
        """Returns the pid of the running process, or None."""
        return recorded_pid(self.pid_path)

    def start(self) -> bool:
        """Starts the program unless it runs; returns whether it had to."""
        if self.pid() is not None:
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        self.pid_path.unlink(missing_ok=True)
        with open(self.log_path, "ab") as log:
            log.write(f"--- {shlex.join(self.command)}\n".encode())
            log.flush()
            # An orphan from its first moment: nobody here has to wait for it, and no Ctrl-C here reaches it.
            subprocess.run(
                ["setsid", "--fork", "sh", "-c", LAUNCH, str(self.pid_path), *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=direct_environ(),
                cwd="/",
                check=True,
            )
        if not wait_until(self.pid_path.exists, timeout_seconds=10, interval_seconds=0.01):
            raise ClusterError(f"{self.name} did not start: {self.log_tail()}")
        return True

    def log_tail(self, num_lines: int = 12) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines() if self.log_path.exists() else []
        return "\n".join([f"the end of {self.log_path}:", *lines[-num_lines:]])


def identity(pid: int) -> str | None:
    """Returns what tells a process from all others that ever had its pid, or None when it has ended."""
    try:
        # The name in brackets may hold blanks; the state is the first word behind it, the start time the twentieth.
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if words[0] in "ZX" else f"{words[19]} {BOOT_ID.read_text().strip()}"


def recorded_pid(pid_path: Path) -> int | None:
    try:
        pid, _, recorded = pid_path.read_text().strip().partition(" ")
    except FileNotFoundError:
        return None
    return int(pid) if identity(int(pid)) == recorded else None


def stop_recorded(pid_paths: Iterable[Path], grace_seconds: float = 2.0) -> None:
    """Ends the processes of these files all at once: with SIGTERM, and after the grace time with SIGKILL."""
    paths = list(pid_paths)
    for number, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 5.0)):
        for pid in filter(None, map(recorded_pid, paths)):
            with suppress(ProcessLookupError):
                os.killpg(pid, number)
        wait_until(lambda: not any(map(recorded_pid, paths)), seconds, 0.05)
    if left := [path.stem for path in paths if recorded_pid(path) is not None]:
        raise ClusterError(f"{', '.join(left)} cannot be stopped, not even with SIGKILL; the kernel's log may say why.")
    for path in paths:
        path.unlink(missing_ok=True)
