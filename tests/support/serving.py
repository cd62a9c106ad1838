"""Starts the real server as a process, and ends it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI

_DEADLINE_SECONDS = 60.0


@dataclass
class RunningServer:
    url: str
    process: subprocess.Popen[str]
    log_path: Path

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=30)

    def post(self, path: str, body: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60)

    def openai(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def log(self) -> str:
        return self.log_path.read_text()

    def wait_until(self, path: str, status: int) -> httpx.Response:
        """Polls until the path answers with the status, and returns the answer."""
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while time.monotonic() < deadline:
            try:
                answer = self.get(path)
                if answer.status_code == status:
                    return answer
            except httpx.TransportError:
                assert self.process.poll() is None, self.log()
            time.sleep(0.05)
        raise AssertionError(f"{path} did not answer {status} in {_DEADLINE_SECONDS} s:\n{self.log()}")

    def wait_for_state(self, model_id: str, state: str) -> None:
        """Polls until /readyz says so of a model."""
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while self.get("/readyz").json()["models"][model_id]["state"] != state:
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def worker_pid(self, model_id: str) -> int:
        """Returns the process that serves a model, found by what the server's log says of it."""
        lines = [line for line in self.log().splitlines() if f"{model_id}: ready" in line]
        return int(lines[-1].rpartition("pid ")[2])


@contextmanager
def running_server(model_path: Path, log_path: Path, exit_code: int = 0, **environ: str) -> Iterator[RunningServer]:
    """Yields a server that answers /livez. At the end it gets SIGTERM, if it still runs, and must end with `exit_code`."""
    port = free_port()
    inherited = {name: value for name, value in os.environ.items() if name not in ("MODEL_PATH", "DEFAULT_MODEL")}
    with log_path.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "nlocalmodels_server"],
            env={**inherited, "MODEL_PATH": str(model_path), "HOST": "127.0.0.1", "PORT": str(port), **environ},
            stderr=log,
            text=True,
        )
    server = RunningServer(f"http://127.0.0.1:{port}", process, log_path)
    try:
        server.wait_until("/livez", 200)
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
    assert code == exit_code, server.log()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
