"""A downloader that is killed at a step, and what must be on the volume when the next one has ended."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from nlocalmodels_downloader.segments import BLOCK_BYTES, num_blocks
from support.faulty_downloader import Faults
from support.model_source import Request

KILLED = -9
_SCRIPT = Path(__file__).with_name("faulty_downloader.py")
_ENVIRON = {
    "POD_UID": "pod",
    "TERMINATION_MESSAGE_PATH": "/dev/null",
    "DOWNLOAD_LEASE_SECONDS": "0.5",
    "NO_PROXY": "*",
    "no_proxy": "*",
}
_CLAIM = re.compile(rb"(\d+) [0-9a-f]{8}\n")


@dataclass
class Ended:
    code: int
    output: str
    steps: list[str]


class Runner:
    """Runs commands of the downloader one after another, each in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._number = 0

    def run(self, arguments: Sequence[str], faults: Faults, environ: Mapping[str, str] | None = None) -> Ended:
        self._number += 1
        output, trace = (self._folder / f"{kind}-{self._number}" for kind in ("output", "trace"))
        order = {
            "arguments": list(arguments),
            "output": str(output),
            "environ": {
                "POD_UID": "pod",
                "TERMINATION_MESSAGE_PATH": "/dev/null",
                "DOWNLOAD_LEASE_SECONDS": "0.5",
                **(environ or {}),
            },
            "faults": {**asdict(faults), "trace": str(trace)},
        }
        requests, answers = _pipes(self._process)
        requests.write(json.dumps(order) + "\n")
        requests.flush()
        code = int(answers.readline())
        steps = trace.read_text().splitlines() if trace.exists() else []
        return Ended(code, output.read_text(), steps)


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


@contextmanager
def running(folder: Path) -> Iterator[Runner]:
    """Starts what forks the commands."""
    command = [sys.executable, str(_SCRIPT), "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Runner(process, folder)
        _pipes(process)[0].close()


def claimed_blocks(root: Path) -> dict[str, set[int]]:
    """Returns what whole journal lines claim of each key, in all workspaces, while the data file is there."""
    claimed: dict[str, set[int]] = {}
    for journal in (root / ".nlocalmodels").glob("partials/*/*.journal"):
        if journal.with_suffix(".data").exists():
            claimed.setdefault(journal.stem, set()).update(int(block) for block in _CLAIM.findall(journal.read_bytes()))
    return claimed


def asked_blocks(requests: Sequence[Request], path: str) -> set[int]:
    """Returns the blocks of a file that were asked for, without the probes."""
    spans = [request.range for request in requests if request.path == path and request.range not in (None, (0, 1))]
    return {block for span in spans if span for block in range(span[0] // BLOCK_BYTES, num_blocks(span[1]))}


def listing(root: Path) -> set[str]:
    """Returns all files, and folders that are empty where they must not be left."""
    found = {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
    partials = root / ".nlocalmodels" / "partials"
    return found | ({str(path.relative_to(root)) for path in partials.iterdir()} if partials.is_dir() else set())
