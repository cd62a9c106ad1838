"""Starts and ends the servers that are compared, with the same settings."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from client import BenchError, Endpoint
from machine import descendants, families_cpu_seconds

OURS = "nlocalmodels_server"
PACKAGE = Path(__file__).resolve().parent.parent.parent / "images" / "server" / OURS
START_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What both are told. `num_threads` None leaves it to ours; the peer is always told its own."""

    num_slots: int = 32
    context_tokens: int = 8192
    # What all requests share. Ours takes as much for this model by itself; llama-server is told.
    num_cells: int = 32768
    num_threads: int | None = None


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is ready. `pid` is that of the process that talks HTTP."""

    name: str
    pid: int
    endpoints: tuple[Endpoint, ...]


class Starter:
    """Starts servers whose files and logs are in one temporary folder."""

    def __init__(self, work: Path, package: Path, llama_server: Path, model: Path) -> None:
        """Copies our package, so that one benchmark measures one version even if somebody edits meanwhile."""
        self._work = work
        self._llama_server = llama_server
        self._model = model
        shutil.copytree(package, work / "ours" / OURS, ignore=shutil.ignore_patterns("__pycache__"))
        self._num_started = 0
        self._running_pids: set[int] = set()

    def cpu_seconds(self) -> float:
        """Returns the processor time of all servers that run."""
        return families_cpu_seconds(self._running_pids)

    @contextmanager
    def ours(self, settings: Settings, ids: Sequence[str] = ("only",), prefix: Sequence[str] = ()) -> Iterator[Server]:
        """Serves the file under each id, as a model of its own, as the product does: one process, by its environment."""
        port = _free_port()
        folder = self._work / f"models-{port}"
        folder.mkdir()
        for model_id in ids:
            (folder / f"{model_id}.gguf").symlink_to(self._model)
        environ = {
            "PYTHONPATH": str(self._work / "ours"),
            "MODEL_PATH": str(folder),
            "DEFAULT_MODEL": ids[0],
            "READY_WHEN": "all",
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "CONTEXT_TOKENS": str(settings.context_tokens),
            "NUM_SLOTS": str(settings.num_slots),
            **({"NUM_THREADS": str(settings.num_threads)} if settings.num_threads else {}),
        }
        command = [*prefix, sys.executable, "-m", OURS]
        with self._running("ours", command, environ, port, "/readyz") as pid:
            yield Server("ours", pid, tuple(Endpoint(port, model_id) for model_id in ids))

    @contextmanager
    def peer(self, settings: Settings, prefix: Sequence[str] = ()) -> Iterator[Server]:
        port = _free_port()
        threads = str(settings.num_threads or len(os.sched_getaffinity(0)))
        command = [*prefix, str(self._llama_server), "--model", str(self._model), "--host", "127.0.0.1", "--port", str(port)]
        command += ["--parallel", str(settings.num_slots), "--ctx-size", str(settings.num_cells), "--kv-unified"]
        command += ["--threads", threads, "--threads-batch", threads]
        with self._running("llama-server", command, {}, port, "/health") as pid:
            yield Server("llama-server", pid, (Endpoint(port, "only"),))

    @contextmanager
    def _running(
        self, name: str, command: Sequence[str], environ: Mapping[str, str], port: int, ready_path: str
    ) -> Iterator[int]:
        self._num_started += 1
        log_path = self._work / f"{self._num_started}-{name}.log"
        clean = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self._work), "LC_ALL": "C.UTF-8"}
        with open(log_path, "wb") as log:
            process = subprocess.Popen(
                command,
                env={**clean, **environ},
                cwd=self._work,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._running_pids.add(process.pid)
        try:
            _wait_until_ready(process, name, port, ready_path, log_path)
            yield process.pid
        finally:
            self._running_pids.discard(process.pid)
            _end(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(process: subprocess.Popen[bytes], name: str, port: int, path: str, log_path: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-20:])
    state = "is not ready" if process.returncode is None else f"ended with {process.returncode}"
    raise BenchError(f"{tail}\n{name} {state}; its last lines are above.")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a server, and what of its workers is left: they may be in groups of their own."""
    with ExitStack() as stack:
        workers = []
        for pid in descendants(process.pid):
            with suppress(ProcessLookupError):
                # A descriptor stays with its process, where a number might soon be another's.
                workers.append(os.pidfd_open(pid))
                stack.callback(os.close, workers[-1])
        try:
            process.terminate()
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.kill()
            process.wait()
            for worker in workers:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(worker, signal.SIGKILL)
