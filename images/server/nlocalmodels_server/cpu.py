"""How many threads may compute: the container's share, not the host's cores."""

from __future__ import annotations

import os
from pathlib import Path


def available_threads(cgroup_root: Path = Path("/sys/fs/cgroup")) -> int:
    """Returns whole CPUs of this process's quota, at least 1, at most the cores it may run on.

    More threads than quota would be stopped in the middle of a step, and the others would wait for them.
    """
    cores = len(os.sched_getaffinity(0))
    quota = cpu_quota(cgroup_root)
    return cores if quota is None else max(1, min(cores, int(quota)))


def explain_threads(cgroup_root: Path = Path("/sys/fs/cgroup")) -> str:
    """Returns what decides `available_threads`, in words."""
    cores, quota = len(os.sched_getaffinity(0)), cpu_quota(cgroup_root)
    return f"{cores} cores" if quota is None or quota >= cores else f"CPU quota of {quota:g}"


def cpu_quota(cgroup_root: Path) -> float | None:
    """Returns the CPUs that the cgroup may use, None without a limit. Reads version 2 (cpu.max) or 1 (cpu.cfs_*)."""
    try:
        quota, period = (cgroup_root / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        folder = cgroup_root / "cpu"
        microseconds = int((folder / "cpu.cfs_quota_us").read_text())
        period_microseconds = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return microseconds / period_microseconds if microseconds > 0 else None
