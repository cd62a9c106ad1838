"""Several downloaders on one volume, each as a pod of its own, that are killed and started again."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from support import killing
from support.downloads import Downloads
from support.faulty_downloader import Faults

_SCRIPT = Path(__file__).with_name("faulty_downloader.py")


@dataclass
class Kill:
    """What had been recorded of each file, and how many requests had come, when a pod was killed."""

    claimed: dict[str, set[int]]
    num_requests: int


@dataclass
class Pods:
    downloads: Downloads
    config: Path
    faults: Faults
    environ: Mapping[str, str]
    seed: int
    kills: list[Kill] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _live: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    _outputs: dict[str, list[Path]] = field(default_factory=dict)

    def __enter__(self) -> Pods:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._live.values():
            process.kill()
            process.wait()

    @property
    def output(self) -> str:
        return "\n".join(path.read_text() for paths in self._outputs.values() for path in paths)

    def start(self, uid: str) -> None:
        outputs = self._outputs.setdefault(uid, [])
        outputs.append(self.config.parent / f"{uid}-{len(outputs)}.log")
        environ = {
            **os.environ,
            **self.environ,
            "POD_UID": uid,
            "FAULTS": self.faults.to_json(),
            "TERMINATION_MESSAGE_PATH": os.devnull,
        }
        with outputs[-1].open("w") as output:
            self._live[uid] = subprocess.Popen(
                [sys.executable, str(_SCRIPT), "sync", "--config", str(self.config)],
                env=environ,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def kill_at_random(self, most_kills: int, total_bytes: int, seconds: float) -> None:
        """Kills one after another, half of them whoever is fetching, and starts it again or another in its place.

        Returns when all have ended by themselves.
        """
        rng = random.Random(self.seed)
        moments = sorted(rng.randrange(total_bytes // 10, total_bytes) for _ in range(most_kills))
        deadline = time.monotonic() + seconds
        while self._live:
            assert time.monotonic() < deadline, f"still running after {seconds:.0f} s: {self.output}"
            if moments and self.downloads.source.sent_bytes >= moments[0]:
                moments.pop(0)
                self._kill(rng)
            self._reap()
            time.sleep(0.005)

    def _kill(self, rng: random.Random) -> None:
        fetching = sorted(self._fetching() & self._live.keys())
        uid = rng.choice(fetching if fetching and rng.random() < 0.7 else sorted(self._live))
        self._live[uid].kill()
        if self._live.pop(uid).wait() != killing.KILLED:
            return
        self.kills.append(Kill(killing.claimed_blocks(self.downloads.root), len(self.downloads.source.requests)))
        # A container that restarts keeps its pod's UID, a pod that is replaced does not.
        self.start(uid if len(self.kills) % 2 else f"{uid}x")

    def _fetching(self) -> set[str]:
        """Returns the pods that have blocks of an unfinished file."""
        return {
            path.parent.name.rpartition(".")[0] for path in (self.downloads.root / ".nlocalmodels").glob("partials/*/*.data")
        }

    def _reap(self) -> None:
        for uid, process in list(self._live.items()):
            if process.poll() is None:
                continue
            del self._live[uid]
            if process.returncode != 0:
                self.failures.append(f"{uid} ended with {process.returncode}: {self._outputs[uid][-1].read_text()}")
