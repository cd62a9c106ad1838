"""Measures curl and the downloader, each writing to memory that nobody has just freed, as on a node where a pod starts.

bench.py removes each file before the next contender runs, and the kernel hands its pages out again at once. Here every file
stays until the end. Writes FRESH_MEMORY.md beside this script.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench import Bench, say
from contenders import HERE, PACKAGE, Course, copy_ours
from measure import BenchError, Run
from origin import MIB, served, write_bulk_gguf

_SETTLE_SECONDS = 3.0


def run_all(options: argparse.Namespace, work: Path) -> str:
    """Measures, and returns the page."""
    for name in ("files", "home", "kept"):
        (work / name).mkdir()
    copy_ours(options.package, work)
    say(f"writing a file of {options.size_mib} MiB")
    big = write_bulk_gguf(work / "files" / "big.gguf", options.size_mib * MIB)
    with served(work, big) as origin:
        course = Course(work, origin, big, "free")
        # What was free before may still be at hand.
        time.sleep(_SETTLE_SECONDS)
        runs = Bench(work, origin).rounds(course, [course.curl(), course.ours()], big, options.runs, work / "kept")
    return _page(options, runs)


def _page(options: argparse.Namespace, runs: dict[str, list[Run]]) -> str:
    medians = {name: statistics.median(run.wall_seconds for run in of) for name, of in runs.items()}
    lines = [
        "# On memory that nobody has just freed",
        "",
        f"{time.strftime('%Y-%m-%d')}, {len(os.sched_getaffinity(0))} cores, {options.size_mib} MiB over TLS from nginx on "
        f"loopback, {options.runs} runs of each in turn; every file stays until the end, as on a node where a pod starts. "
        "Repeat it with",
        "",
        f"    .venv/bin/python benchmarks/download/fresh_memory.py --size-mib {options.size_mib} --runs {options.runs}",
        "",
        "| contender | sha256 verified | median s | min to max s | ratio | CPU s |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, of in runs.items():
        walls = [run.wall_seconds for run in of]
        cpu_seconds = statistics.median(run.cpu_seconds for run in of)
        lines.append(
            f"| {name} | {'no' if name == 'curl' else 'yes'} | {medians[name]:.2f} | {min(walls):.2f} to {max(walls):.2f} | "
            f"{medians[name] / medians['curl']:.2f} | {cpu_seconds:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size-mib", type=int, default=1024, help="size of the file (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=7, help="runs of each; their files need twice as many times the size")
    parser.add_argument("--package", type=Path, default=PACKAGE, help="folder of another version of the downloader")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made (default: that of the system)")
    parser.add_argument("--output", type=Path, default=HERE / "FRESH_MEMORY.md", help="where the page is written")
    options = parser.parse_args()
    # Debian has nginx where a user does not look for programs.
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
    try:
        with tempfile.TemporaryDirectory(prefix="bench-download-", dir=options.folder) as folder:
            page = run_all(options, Path(folder).resolve())
    except BenchError as error:
        say(str(error))
        return 2
    sys.stdout.write(page)
    options.output.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
