"""Kills a transfer at random, again and again, and looks at what that costs: `make soak-download`.

A schedule is a volume of its own and a number of SIGKILLs, each after a random number of bytes or a random time, from a seed;
then a run that is left alone. Exits with 1 if a digest, a file left behind, an exit code or the bytes fetched twice is wrong.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from nlocalmodels_downloader import cli
from nlocalmodels_downloader.segments import BLOCK_BYTES, MAX_OUTSTANDING_BYTES, num_blocks
from support import killing
from support.file_origin import FileOrigin
from support.gguf_files import bulk_gguf

MIB = 1024 * 1024
_MAX_KILLS = 6
_SECONDS_OF_A_RUN = 120.0


@dataclass
class Tally:
    """What came of the schedules."""

    size_bytes: int
    num_schedules: int = 0
    twice_bytes: list[int] = field(default_factory=list)
    num_ended_before: int = 0
    num_published: int = 0
    num_wrong_digests: int = 0
    orphans: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        is_bounded = max(self.twice_bytes, default=0) <= MAX_OUTSTANDING_BYTES
        return bool(self.twice_bytes) and is_bounded and not (self.num_wrong_digests or self.orphans or self.failures)

    def table(self) -> str:
        most, mean = max(self.twice_bytes, default=0), sum(self.twice_bytes) / max(1, len(self.twice_bytes))
        rows = [
            ("size of the file", f"{self.size_bytes / MIB:.0f} MiB"),
            ("schedules", f"{self.num_schedules}"),
            ("kills", f"{len(self.twice_bytes)}"),
            ("of them after the last byte had come", f"{self.num_published}"),
            ("kills that came too late, after the end of a run", f"{self.num_ended_before}"),
            ("bytes fetched twice per kill, most", f"{most} ({most / MIB:.2f} MiB)"),
            ("bytes fetched twice per kill, mean", f"{mean:.0f} ({mean / MIB:.2f} MiB)"),
            ("wrong digests", f"{self.num_wrong_digests}"),
            ("files left behind", f"{len(self.orphans)}"),
            ("runs that failed", f"{len(self.failures)}"),
            ("seconds per schedule", f"{self.seconds / max(1, self.num_schedules):.1f}"),
        ]
        return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])


class Schedules:
    def __init__(self, folder: Path, origin: FileOrigin, file: Path, sha256: str) -> None:
        self._folder = folder
        self._origin = origin
        self._file = file
        self._size_bytes = file.stat().st_size
        self._sha256 = sha256
        self.tally = Tally(self._size_bytes)
        self._has_ended = False
        self._code = 0

    def run(self, seed: int) -> None:
        rng = random.Random(seed)
        root = self._folder / f"models-{seed}"
        config = self._folder / "downloads.yaml"
        model = {"id": "m", "file": "m.gguf", "source": self._origin.url, "sha256": self._sha256, "sizeBytes": self._size_bytes}
        config.write_text(yaml.safe_dump({"modelPath": str(root), "models": [model]}))
        for _ in range(rng.randint(1, _MAX_KILLS)):
            if not self._kill(config, root, rng):
                break
        code = self._wait(self._start(config))
        if code != 0:
            self.tally.failures.append(f"schedule {seed} ended with {code}: {self._log.read_text()}")
        self._look(root, seed)
        shutil.rmtree(root, ignore_errors=True)
        self.tally.num_schedules += 1

    def _kill(self, config: Path, root: Path, rng: random.Random) -> bool:
        """Returns False when the run ended before."""
        before_blocks, before_bytes = self._claimed(root), self._origin.sent_bytes
        left_bytes = self._size_bytes - before_blocks * BLOCK_BYTES
        # Some moments are in the transfer, some anywhere, some in what comes after the last byte.
        kind = rng.choices(("bytes", "time", "end"), (5, 3, 2))[0]
        until_bytes = before_bytes + (left_bytes if kind == "end" else rng.randrange(1, max(2, left_bytes)))
        wait_seconds = {"bytes": 0.0, "time": rng.random() * (0.2 + left_bytes / 0.6e9), "end": rng.random() * 0.15}[kind]
        child = self._start(config)
        if kind != "time":
            self._until(lambda: self._poll(child) is not None or self._origin.sent_bytes >= until_bytes)
        due_seconds = time.monotonic() + wait_seconds
        self._until(lambda: self._poll(child) is not None or time.monotonic() >= due_seconds)
        if self._poll(child) is None:
            os.kill(child, signal.SIGKILL)
        code = self._wait(child)
        if code != killing.KILLED:
            self.tally.num_ended_before += 1
            if code != 0:
                self.tally.failures.append(f"a run ended with {code}: {self._log.read_text()}")
            return False
        self._until(lambda: self._origin.num_sending == 0)
        is_published = (root / "m.gguf").exists()
        claimed_bytes = self._size_bytes if is_published else min(self._claimed(root) * BLOCK_BYTES, self._size_bytes)
        new_bytes = claimed_bytes - min(before_blocks * BLOCK_BYTES, self._size_bytes)
        self.tally.twice_bytes.append(max(0, self._origin.sent_bytes - before_bytes - new_bytes))
        self.tally.num_published += claimed_bytes == self._size_bytes
        return True

    def _claimed(self, root: Path) -> int:
        if (root / "m.gguf").exists():
            return num_blocks(self._size_bytes)
        return len(killing.claimed_blocks(root).get(self._sha256, set()))

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    def _start(self, config: Path) -> int:
        self._has_ended = False
        self._log.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            _carry_out(config, self._log)
        return child

    def _poll(self, child: int) -> int | None:
        if not self._has_ended:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                self._has_ended, self._code = True, os.waitstatus_to_exitcode(status)
        return self._code if self._has_ended else None

    def _wait(self, child: int) -> int:
        self._until(lambda: self._poll(child) is not None)
        return self._code

    @staticmethod
    def _until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _SECONDS_OF_A_RUN
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError("a run has not ended")
            time.sleep(0.0005)

    def _look(self, root: Path, seed: int) -> None:
        published = root / "m.gguf"
        if not published.exists() or not _is_same(published, self._file):
            self.tally.num_wrong_digests += 1
        state = ".nlocalmodels"
        found = {path for path in killing.listing(root) if not path.startswith(f"{state}/sets/")}
        expected = {"m.gguf", f"{state}/publish.lock", f"{state}/verified/m.gguf.json"}
        num_sets = len(list((root / state / "sets").iterdir()))
        if found != expected or num_sets != 1:
            self.tally.orphans.append(f"schedule {seed}: {sorted(found - expected)}, {num_sets} manifests")


def _carry_out(config: Path, log: Path) -> None:
    """Is the child: a downloader as in a container, without the start of Python."""
    code = 70
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update({"POD_UID": "pod", "TERMINATION_MESSAGE_PATH": os.devnull, "NO_PROXY": "*", "no_proxy": "*"})
        code = cli.main(["sync", "--config", str(config)])
    finally:
        os._exit(code)


def _is_same(one: Path, other: Path) -> bool:
    """Compares all bytes, faster than by digests."""
    with one.open("rb") as first, other.open("rb") as second:
        if os.fstat(first.fileno()).st_size != os.fstat(second.fileno()).st_size:
            return False
        with (
            mmap.mmap(first.fileno(), 0, prot=mmap.PROT_READ) as mine,
            mmap.mmap(second.fileno(), 0, prot=mmap.PROT_READ) as theirs,
        ):
            return all(
                mine[offset : offset + 8 * MIB] == theirs[offset : offset + 8 * MIB] for offset in range(0, len(mine), 8 * MIB)
            )


def run_all(folder: Path, options: argparse.Namespace) -> Tally:
    file = folder / "m.gguf"
    data = bulk_gguf(options.size_mib * MIB + 12345, options.seed)
    file.write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    del data
    with FileOrigin(file, options.bytes_per_second).running() as origin:
        schedules = Schedules(folder, origin, file, sha256)
        started = time.monotonic()
        for number in range(options.schedules):
            schedules.run(options.seed + number)
            schedules.tally.seconds = time.monotonic() - started
            sys.stderr.write(
                f"\r[soak-download] {number + 1} of {options.schedules} schedules, {schedules.tally.seconds:.0f} s"
            )
            sys.stderr.flush()
            if schedules.tally.seconds > options.minutes * 60:
                break
        sys.stderr.write("\n")
        return schedules.tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=200)
    parser.add_argument("--size-mib", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60.0, help="begins no schedule after that time")
    parser.add_argument("--bytes-per-second", type=float, help="of a connection; without it, as fast as it goes")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made (default: that of the system)")
    parser.add_argument("--output", type=Path, help="appends the table, with the date, to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-download-", dir=options.folder) as folder:
        tally = run_all(Path(folder), options)
    sys.stdout.write(tally.table() + "\n")
    for problem in [*tally.orphans, *tally.failures]:
        sys.stdout.write(problem + "\n")
    if options.output is not None:
        date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
        with options.output.open("a", encoding="utf-8") as page:
            page.write(f"\n## {date}, {len(os.sched_getaffinity(0))} cores\n\n{tally.table()}\n")
    return 0 if tally.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
