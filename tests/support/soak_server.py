"""A long mixed load on a server, and whether anything grows: `python -m support.soak_server --minutes 60`.

Two models, one of them the real one. Clients send what clients send: short and long prompts, beginnings in common, texts to
copy, streams that are read to their end and streams that are dropped, several choices at once, requests that are refused.
Meanwhile the memory, threads and open files of all processes of the server are looked at. At the end it must be idle, and no
larger than it was after the warm-up.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

import httpx

import embedded_model
from support.gguf_files import write_llama
from support.serving import RunningServer, running_server

_WORDS = ("river", "stone", "window", "seven", "yellow", "under", "garden", "market", "paper", "winter", "singing", "quiet")
_NUM_CLIENTS = 6
_ALLOWED_GROWTH = 0.02


@dataclass(frozen=True)
class Sample:
    """The server's processes at a moment, in all."""

    resident_kib: int
    num_threads: int
    num_files: int
    cpu_ticks: int


def take_sample(pid: int) -> Sample:
    """Looks at a process and its children."""
    resident, threads, files, ticks = 0, 0, 0, 0
    children = (Path(f"/proc/{pid}/task/{pid}/children")).read_text().split()
    for process in (str(pid), *children):
        folder = Path("/proc") / process
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        resident += int(status["VmRSS"].split()[0])
        threads += int(status["Threads"])
        files += len(list((folder / "fd").iterdir()))
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return Sample(resident, threads, files, ticks)


class Clients:
    """Sends requests of all kinds until told to stop, and counts what came of them."""

    def __init__(self, server: RunningServer, seed: int) -> None:
        self._server = server
        self._rng = random.Random(seed)
        self._prefixes = [self._words(300) for _ in range(3)]
        self.counts: Counter[str] = Counter()

    async def run(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        async with httpx.AsyncClient(base_url=self._server.url, timeout=300) as client:
            await asyncio.gather(*(self._send_until(client, deadline) for _ in range(_NUM_CLIENTS)))

    async def _send_until(self, client: httpx.AsyncClient, deadline: float) -> None:
        kinds = (self._whole, self._stream, self._dropped, self._several, self._refused)
        while time.monotonic() < deadline:
            kind = self._rng.choices(kinds, weights=(4, 4, 2, 1, 1))[0]
            await kind(client)
            self.counts[kind.__name__.strip("_")] += 1

    async def _whole(self, client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/completions", json=self._request())
        assert answer.status_code == 200, answer.text

    async def _several(self, client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/completions", json={**self._request(), "n": 3})
        assert len(answer.json()["choices"]) == 3, answer.text

    async def _refused(self, client: httpx.AsyncClient) -> None:
        wrong: dict[str, object] = self._rng.choice([{"model": "gone"}, {"max_tokens": -1}, {"prompt": None}])
        answer = await client.post("/v1/completions", json={**self._request(), **wrong})
        assert answer.status_code in (400, 404), answer.text

    async def _stream(self, client: httpx.AsyncClient) -> None:
        lines = [line async for line in self._lines(client)]
        assert lines[-1] == "data: [DONE]", lines[-3:]
        assert all("error" not in json.loads(line.removeprefix("data: ")) for line in lines[:-1])

    async def _dropped(self, client: httpx.AsyncClient) -> None:
        num_lines = self._rng.randint(0, 10)
        # Leaving the stream closes the connection.
        async with contextlib.aclosing(self._lines(client)) as lines:
            async for _ in lines:
                num_lines -= 1
                if num_lines < 0:
                    break

    async def _lines(self, client: httpx.AsyncClient) -> AsyncGenerator[str, None]:
        async with client.stream("POST", "/v1/completions", json={**self._request(), "stream": True}) as answer:
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                if line:
                    yield line

    def _request(self) -> dict[str, object]:
        rng = self._rng
        prompt = rng.choice(
            [
                self._words(rng.randint(1, 20)),
                rng.choice(self._prefixes) + self._words(rng.randint(1, 20)),
                self._words(rng.randint(200, 900)),
                "Repeat word for word: " + (text := self._words(30)) + "\n" + text[:40],
            ]
        )
        # The tiny model has a token for each byte and a context of 2,048.
        is_tiny = rng.random() < 0.3
        return {
            "model": "tiny" if is_tiny else "real",
            "prompt": prompt[:1200] if is_tiny else prompt,
            "max_tokens": rng.randint(1, 60),
            "temperature": rng.choice([0, 0, 0.8]),
        }

    def _words(self, num_words: int) -> str:
        return " ".join(self._rng.choice(_WORDS) for _ in range(num_words))


async def soak(server: RunningServer, seconds: float, warm_up_seconds: float, seed: int) -> tuple[Counter[str], list[Sample]]:
    """Loads a server, and returns what was sent and a sample after the warm-up, at each minute and at the end."""
    clients = Clients(server, seed)
    await clients.run(warm_up_seconds)
    samples = [take_sample(server.process.pid)]
    _report(samples, clients.counts, 0)
    started = time.monotonic()
    while (left := started + seconds - time.monotonic()) > 0:
        await clients.run(min(60.0, left))
        samples.append(take_sample(server.process.pid))
        _report(samples, clients.counts, time.monotonic() - started)
    return clients.counts, samples


def judge(server: RunningServer, samples: list[Sample]) -> list[str]:
    """Returns what has leaked, nothing if nothing has. The first sample is what the others are compared with."""
    first = samples[0]
    # Noise of a single look goes both ways; a leak stays.
    late = samples[-max(1, len(samples) // 4) :]
    resident_kib = sorted(sample.resident_kib for sample in late)[len(late) // 2]
    problems = []
    growth = resident_kib / first.resident_kib - 1
    if growth > _ALLOWED_GROWTH:
        problems.append(f"memory has grown by {growth:.1%}, from {first.resident_kib} KiB to {resident_kib} KiB")
    time.sleep(2)
    idle = [take_sample(server.process.pid)]
    time.sleep(5)
    idle.append(take_sample(server.process.pid))
    if idle[1].num_threads > first.num_threads:
        problems.append(f"{idle[1].num_threads} threads where there were {first.num_threads}")
    if idle[1].num_files > first.num_files:
        problems.append(f"{idle[1].num_files} open files where there were {first.num_files}")
    # A sequence that nobody waits for would still be computed.
    if (ticks := idle[1].cpu_ticks - idle[0].cpu_ticks) > 25:
        problems.append(f"without requests it has computed for {ticks / 100:.2f} s of 5")
    return problems


def _report(samples: list[Sample], counts: Counter[str], seconds: float) -> None:
    last = samples[-1]
    sent = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items()))
    growth = last.resident_kib / samples[0].resident_kib - 1
    print(
        f"[soak] {seconds / 60:5.1f} min: {last.resident_kib / 1024:.1f} MiB ({growth:+.2%}), {last.num_threads} threads, "
        f"{last.num_files} files; {sent}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="after the warm-up (default: 60)")
    parser.add_argument("--warm-up-minutes", type=float, default=5.0, help="before anything is compared (default: 5)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "models").mkdir()
        (folder / "models" / "real.gguf").symlink_to(embedded_model.ensure_embedded_model())
        write_llama(folder / "models" / "tiny.gguf")
        with running_server(folder / "models", folder / "server.log", DEFAULT_MODEL="real") as server:
            server.wait_until("/readyz", 200)
            _, samples = asyncio.run(soak(server, arguments.minutes * 60, arguments.warm_up_minutes * 60, arguments.seed))
            problems = judge(server, samples)
    for problem in problems:
        print(f"[soak] {problem}")
    print("[soak] " + ("FAILED" if problems else "nothing leaks"))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
