"""Writes the results as Markdown."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from measure import Run
from origin import MIB, THROTTLE

BASELINE = "curl"


@dataclass(frozen=True, slots=True)
class Results:
    """All that was measured. `free` and `throttled` hold each contender's runs, in the order of the tables."""

    free: Mapping[str, Sequence[Run]]
    throttled: Mapping[str, Sequence[Run]]
    second_syncs: Sequence[Run]
    num_second_sync_requests: int
    verifying: frozenset[str]
    ours: str


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What the figures depend on."""

    size_mib: int
    throttled_mib: int
    runs: int
    throttled_runs: int
    filesystem: str
    versions: Sequence[tuple[str, str]]


def render(results: Results, where: Circumstances) -> str:
    """Returns the whole page."""
    lines = [
        "# Download benchmark",
        "",
        f"{time.strftime('%Y-%m-%d', time.gmtime())}, {cpu_model()}, {len(os.sched_getaffinity(0))} cores, "
        f"kernel {platform.release()}, {where.filesystem}. nginx on loopback over TLS shares the cores with each contender.",
        "",
        ", ".join(f"{name} {version}" for name, version in where.versions) + ".",
        "",
        "Repeat it with",
        "",
        f"    .venv/bin/python benchmarks/download/bench.py --size-mib {where.size_mib} --runs {where.runs}"
        f" --throttled-mib {where.throttled_mib} --throttled-runs {where.throttled_runs}",
        "",
        f"## Unthrottled: {where.size_mib} MiB, {_runs(where.runs)}",
        "",
        *_table(results.free, results),
        "",
        f"## {THROTTLE.removesuffix('m')} MiB/s per connection: {where.throttled_mib} MiB, {_runs(where.throttled_runs)}",
        "",
        *_table(results.throttled, results),
        "",
        f"## {results.ours}: small figures",
        "",
        *_small_figures(results),
        "",
        "Ratios are to curl's median of the same table. Processor seconds are the median of user and system time, without "
        "nginx's. RSS is the largest of all runs.",
    ]
    return "\n".join(lines) + "\n"


def _table(runs_of: Mapping[str, Sequence[Run]], results: Results) -> list[str]:
    base = median(run.wall_seconds for run in runs_of[BASELINE])
    lines = [
        "| contender | sha256 verified | median s | min to max s | ratio | CPU s | max RSS MiB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, runs in runs_of.items():
        walls = [run.wall_seconds for run in runs]
        cpu = median(run.cpu_seconds for run in runs)
        verified = "yes" if name in results.verifying else "no"
        shown = f"**{name}**" if name == results.ours else name
        lines.append(
            f"| {shown} | {verified} | {median(walls):.2f} | {min(walls):.2f} to {max(walls):.2f} "
            f"| {median(walls) / base:.2f} | {cpu:.2f} | {_rss(runs)} |"
        )
    return lines


def _small_figures(results: Results) -> list[str]:
    firsts = [run.first_request_seconds for run in results.free[results.ours] if run.first_request_seconds is not None]
    seconds = [run.wall_seconds for run in results.second_syncs]
    return [
        "| figure | median | min to max |",
        "| --- | ---: | ---: |",
        f"| start to first request at nginx, s | {_spread(firsts)} |",
        f"| second sync of a verified volume, s | {_spread(seconds)} |",
        f"| requests of all {len(seconds)} second syncs | {results.num_second_sync_requests} | |",
        f"| max RSS of a second sync, MiB | {_rss(results.second_syncs)} | |",
        f"| max RSS of a fetch, MiB | {_rss(results.free[results.ours])} | |",
    ]


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.3f} | {min(values):.3f} to {max(values):.3f}" if values else "not seen | "


def _rss(runs: Sequence[Run]) -> str:
    largest = max(runs, key=lambda run: run.max_rss_bytes)
    return ("at most " if largest.max_rss_bytes <= largest.rss_floor_bytes else "") + f"{largest.max_rss_bytes / MIB:.0f}"


def _runs(number: int) -> str:
    return "1 run" if number == 1 else f"{number} runs"


def cpu_model() -> str:
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()
