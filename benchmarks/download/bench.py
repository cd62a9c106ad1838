"""Measures the downloader against curl, aria2c and huggingface_hub, all from an nginx on loopback: `make bench-download`."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from contenders import HERE, OURS, PACKAGE, Contender, Course, clean_environ, copy_ours, install_peers, versions
from measure import BenchError, Run, measure
from origin import MIB, BulkFile, Origin, served, write_bulk_gguf
from report import Circumstances, Results, render

# Program and the Debian package that has it.
PROGRAMS = {
    "nginx": "nginx",
    "aria2c": "aria2",
    "curl": "curl",
    "openssl": "openssl",
    "sha256sum": "coreutils",
    "stat": "coreutils",
}


def say(text: str) -> None:
    sys.stderr.write(f"[bench-download] {text}\n")
    sys.stderr.flush()


class Bench:
    """One benchmark in one temporary folder."""

    def __init__(self, work: Path, origin: Origin) -> None:
        self._work = work
        self._origin = origin
        self._environ = clean_environ(work)

    def rounds(
        self, course: Course, contenders: Sequence[Contender], file: BulkFile, num_runs: int, kept: Path | None = None
    ) -> dict[str, list[Run]]:
        """Runs all in turn, again and again, so that what else the machine does falls on all of them.

        Args:
            kept: where what was fetched is moved to, so that its memory is not free for the next one; None removes it.
        """
        runs: dict[str, list[Run]] = {contender.name: [] for contender in contenders}
        for number in range(1, num_runs + 1):
            for contender in contenders:
                _empty(course.target)
                run = self._run(contender)
                _check(contender, file, compares_digest=number == 1)
                runs[contender.name].append(run)
                if kept is not None:
                    course.target.rename(kept / f"{contender.name}-{number}")
                say(f"{number}/{num_runs} {contender.name}: {run.wall_seconds:.2f} s")
        return runs

    def second_syncs(self, course: Course, ours: Contender, num_runs: int) -> tuple[list[Run], int]:
        """Returns runs over a volume that is complete, and how many requests nginx saw of them."""
        _empty(course.target)
        self._run(ours)
        num_before = len(self._origin.request_times())
        runs = [self._run(ours) for _ in range(num_runs)]
        return runs, len(self._origin.request_times()) - num_before

    def _run(self, contender: Contender) -> Run:
        # What an earlier run left to be written to the disk is not this one's affair.
        os.sync()
        run = measure(contender.command, {**self._environ, **contender.environ}, self._work)
        # nginx logs a request just after its last byte, so wait for its line.
        time.sleep(0.2)
        # nginx's clock has milliseconds; a request cannot have come before the start.
        after_start = [when - run.started_at_seconds for when in self._origin.request_times()]
        return replace(run, first_request_seconds=min((seconds for seconds in after_start if seconds > 0), default=None))


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _check(contender: Contender, file: BulkFile, compares_digest: bool) -> None:
    """Makes sure that a contender did its work; the digest is compared once, outside of the measured time."""
    if not contender.result.is_file() or contender.result.stat().st_size != file.size_bytes:
        raise BenchError(f"{contender.name} ended well but left no file of {file.size_bytes} bytes.")
    if compares_digest:
        found = _output_of("sha256sum", str(contender.result)).split()[0]
        if found != file.sha256:
            raise BenchError(f"{contender.name} ended well but left a file with sha256 {found} instead of {file.sha256}.")


def run_all(options: argparse.Namespace, work: Path) -> str:
    """Measures everything and returns the page."""
    for name in ("files", "home"):
        (work / name).mkdir()
    say("installing huggingface_hub into a throw-away environment")
    hub_python = install_peers(work)
    copy_ours(options.package, work)
    say(f"writing files of {options.size_mib} and {options.throttled_mib} MiB")
    big = write_bulk_gguf(work / "files" / "big.gguf", options.size_mib * MIB)
    small = write_bulk_gguf(work / "files" / "small.gguf", options.throttled_mib * MIB)
    with served(work, big) as origin:
        bench = Bench(work, origin)
        free = Course(work, origin, big, "free")
        contenders = [
            free.curl(),
            free.curl_and_sha256sum(),
            free.aria2c(verifies=False),
            free.aria2c(verifies=True),
            free.hub(hub_python),
            free.ours(),
        ]
        free_runs = bench.rounds(free, contenders, big, options.runs)
        second_syncs, num_requests = bench.second_syncs(free, free.ours(), options.runs)
        slow = Course(work, origin, small, "throttled")
        say(f"throttled: about {options.throttled_mib / 20 * options.throttled_runs:.0f} s for curl alone")
        slow_contenders = [slow.curl(), slow.aria2c(verifies=False), slow.ours()]
        slow_runs = bench.rounds(slow, slow_contenders, small, options.throttled_runs)
        results = Results(
            free=free_runs,
            throttled=slow_runs,
            second_syncs=second_syncs,
            num_second_sync_requests=num_requests,
            verifying=frozenset(contender.name for contender in contenders if contender.verifies),
            ours=OURS,
        )
    circumstances = Circumstances(
        size_mib=options.size_mib,
        throttled_mib=options.throttled_mib,
        runs=options.runs,
        throttled_runs=options.throttled_runs,
        filesystem=_filesystem(work),
        versions=versions(hub_python),
    )
    return render(results, circumstances)


def _filesystem(folder: Path) -> str:
    return _output_of("stat", "-f", "-c", "%T", str(folder)).strip()


def _output_of(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def _check_machine(options: argparse.Namespace) -> None:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        packages = " ".join(dict.fromkeys(PROGRAMS[name] for name in missing))
        raise BenchError(f"{', '.join(missing)} not found; on Debian: apt-get install {packages}")
    needed_bytes = (2 * options.size_mib + 2 * options.throttled_mib + 512) * MIB
    free_bytes = shutil.disk_usage(options.folder or tempfile.gettempdir()).free
    if free_bytes < needed_bytes:
        raise BenchError(f"needs {needed_bytes // MIB} MiB of disk, {free_bytes // MIB} are free; give another --folder.")


def _stop_on_signal(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size-mib", type=_positive, default=1024, help="size of the file (default: %(default)s)")
    parser.add_argument("--runs", type=_positive, default=5, help="runs of each contender (default: %(default)s)")
    parser.add_argument("--throttled-mib", type=_positive, default=256, help="size where throttled (default: %(default)s)")
    parser.add_argument("--throttled-runs", type=_positive, default=3, help="runs where throttled (default: %(default)s)")
    parser.add_argument("--package", type=Path, default=PACKAGE, help="folder of another version of the downloader")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made (default: that of the system)")
    parser.add_argument("--output", type=Path, default=HERE / "RESULTS.md", help="where the page is written")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop_on_signal)
    # Debian has nginx where a user does not look for programs.
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
    try:
        _check_machine(options)
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
