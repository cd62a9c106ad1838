"""How much memory the container has left for another model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

# Above this a version 1 limit is none: the kernel shows the largest number of pages there can be.
_NO_LIMIT_BYTES = 1 << 62


@dataclass(frozen=True, slots=True)
class Memory:
    """What the cgroup may use, and what of it is in use for good."""

    limit_bytes: int
    used_bytes: int

    @property
    def free_bytes(self) -> int:
        return max(0, self.limit_bytes - self.used_bytes)


def read_memory(cgroup_root: Path = Path("/sys/fs/cgroup")) -> Memory | None:
    """Returns the memory of this process's cgroup, None without a limit. Reads version 2 (memory.max) or 1.

    Page cache can be taken back and is not in use, but for what processes have mapped: the weights of models that serve.
    """
    old = cgroup_root / "memory"
    for folder, limit_name, usage_name, prefix in (
        (cgroup_root, "memory.max", "memory.current", ""),
        (old, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    ):
        try:
            limit = (folder / limit_name).read_text().strip()
            if limit == "max" or int(limit) >= _NO_LIMIT_BYTES:
                return None
            usage_bytes = int((folder / usage_name).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            cache_bytes = int(stat[f"{prefix}active_file"]) + int(stat[f"{prefix}inactive_file"])
            mapped_bytes = int(stat["file_mapped"] if not prefix else stat["total_mapped_file"])
        except (OSError, ValueError, KeyError):
            continue
        return Memory(int(limit), max(0, usage_bytes - max(0, cache_bytes - mapped_bytes)))
    return None
