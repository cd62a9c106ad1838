"""Runs commands under a quota of CPU, in a real cgroup that they see as a container sees its own."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PERIOD_MICROSECONDS = 100_000


def why_not() -> str | None:
    """Returns what keeps this machine from such a cgroup, None if it can."""
    if os.geteuid() != 0:
        return "a cgroup needs root"
    if shutil.which("unshare") is None:
        return "unshare not found; on Debian: apt-get install util-linux"
    if not _is_version_1() and "cpu" not in _read(ROOT / "cgroup.controllers").split():
        return f"{ROOT} has no CPU controller"
    return None


@contextmanager
def cpu_quota(num_cpus: float) -> Iterator[list[str]]:
    """Makes a cgroup with that quota, and yields what to put before a command that is to run in it.

    The command gets a mount namespace of its own in which its cgroup is the root of /sys/fs/cgroup, so that it detects
    its quota as in a pod. Whoever is still in the cgroup at the end must have been ended by the caller.
    """
    is_version_1 = _is_version_1()
    folder = (ROOT / "cpu" if is_version_1 else ROOT) / f"bench-engine-{os.getpid()}"
    folder.mkdir()
    try:
        quota = int(num_cpus * PERIOD_MICROSECONDS)
        if is_version_1:
            (folder / "cpu.cfs_period_us").write_text(str(PERIOD_MICROSECONDS))
            (folder / "cpu.cfs_quota_us").write_text(str(quota))
            show = f"mount --bind {shlex.quote(str(folder))} {ROOT / 'cpu'}"
        else:
            with suppress(OSError):
                (ROOT / "cgroup.subtree_control").write_text("+cpu")
            (folder / "cpu.max").write_text(f"{quota} {PERIOD_MICROSECONDS}")
            show = f"mount --bind {shlex.quote(str(folder))} {ROOT}"
        script = f'echo $$ > {shlex.quote(str(folder / "cgroup.procs"))} && {show} && exec "$@"'
        yield ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    finally:
        _remove(folder)


def _is_version_1() -> bool:
    return (ROOT / "cpu" / "cpu.cfs_quota_us").exists() or (ROOT / "cpu" / "cgroup.procs").exists()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _remove(folder: Path) -> None:
    """Removes the cgroup as soon as the kernel has let its last process go."""
    deadline = time.monotonic() + 10.0
    while True:
        try:
            folder.rmdir()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
