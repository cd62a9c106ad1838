"""The parent's side of a model's process: starts it, talks to it, starts it again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from nlocalmodels_server.workers.protocol import Frame, GenerationRequest, LoadOptions, encode_frame, read_frame

log = logging.getLogger(__name__)

MAX_PENDING_REQUESTS = 512
_MAX_LOAD_ATTEMPTS = 3
_MAX_BACKOFF_SECONDS = 30.0
_STABLE_SECONDS = 60.0


class WorkerState(Enum):
    WAITING = "waiting"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    STOPPED = "stopped"


class GenerationError(Exception):
    """A request that failed. `status` is the HTTP status that fits, `code` a word for programs."""

    def __init__(self, status: int, message: str, code: str, retry_after_seconds: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of a generation. With the last one come the reason and the token counts."""

    text: str
    finish_reason: str | None = None
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0


Sink = Callable[[Delta | GenerationError], None]


class Generation:
    """A request under way. What comes of it goes to its sink, which gets nothing more after the end or a cancel."""

    def __init__(self, worker: Worker, request_id: int, sink: Sink) -> None:
        self._worker = worker
        self.request_id = request_id
        self.sink = sink
        self.accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def cancel(self) -> None:
        """Ends it within a step, and is harmless after its end."""
        self._worker.cancel(self)


class Worker:
    """One model and its process.

    Args:
        load_turns: bounds how many models load at once.
        environ: what to set in the process's environment.
    """

    def __init__(
        self, model_id: str, path: Path, options: LoadOptions, load_turns: asyncio.Semaphore, environ: dict[str, str]
    ) -> None:
        self.model_id = model_id
        self.path = path
        self.state = WorkerState.WAITING
        self.reason: str | None = None
        self.info: dict[str, Any] = {}
        self.num_restarts = 0
        self.pid: int | None = None
        self._options = options
        self._load_turns = load_turns
        self._environ = environ
        self._writer: asyncio.StreamWriter | None = None
        self._pending: dict[int, Generation] = {}
        self._next_id = 0
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._supervise(), name=f"worker {self.model_id}")

    async def stop(self) -> None:
        """Ends the process and fails what is still under way."""
        self.state = WorkerState.STOPPED
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._end_process()
        self._fail_pending("the server is shutting down")

    async def generate(self, request: GenerationRequest, sink: Sink) -> Generation:
        """Hands a request over and waits until it is accepted.

        Raises:
            GenerationError: not ready, queue full, or refused by the model (its context, its template).
        """
        if self.state is not WorkerState.READY or self._writer is None:
            raise self._not_ready()
        if len(self._pending) >= MAX_PENDING_REQUESTS:
            raise GenerationError(
                429,
                f"'{self.model_id}' has {MAX_PENDING_REQUESTS} requests under way; try again later.",
                "queue_full",
                retry_after_seconds=5,
            )
        self._next_id += 1
        generation = Generation(self, self._next_id, sink)
        self._pending[generation.request_id] = generation
        self._writer.write(encode_frame(request.to_frame(generation.request_id)))
        try:
            await generation.accepted
        except asyncio.CancelledError:
            generation.cancel()
            raise
        return generation

    def cancel(self, generation: Generation) -> None:
        if self._pending.pop(generation.request_id, None) is not None and self._writer is not None:
            self._writer.write(encode_frame({"op": "cancel", "id": generation.request_id}))

    def _not_ready(self) -> GenerationError:
        if self.state is WorkerState.FAILED:
            return GenerationError(503, f"'{self.model_id}' cannot be served: {self.reason}.", "model_failed")
        return GenerationError(
            503, f"'{self.model_id}' is {self.state.value}; try again soon.", "model_not_ready", retry_after_seconds=2
        )

    @property
    def is_loading_first(self) -> bool:
        """Whether it has neither served nor failed since the start."""
        return self.state in (WorkerState.WAITING, WorkerState.LOADING) and not self.num_restarts

    async def _supervise(self) -> None:
        num_failed_loads = 0
        backoff_seconds = 0.5
        while True:
            await self._run_process()
            if self.state is WorkerState.FAILED:
                return
            was_ready, lived_seconds = self._ready_at is not None, time.monotonic() - (self._ready_at or time.monotonic())
            self.state = WorkerState.WAITING
            num_failed_loads = 0 if was_ready else num_failed_loads + 1
            if num_failed_loads >= _MAX_LOAD_ATTEMPTS:
                self.state = WorkerState.FAILED
                self.reason = f"its process {self.reason} while loading, {num_failed_loads} times"
                log.error("%s: %s is not served: %s", self.model_id, self.path.name, self.reason)
                return
            backoff_seconds = 0.5 if lived_seconds > _STABLE_SECONDS else min(_MAX_BACKOFF_SECONDS, backoff_seconds * 2)
            self.num_restarts += 1
            log.error("%s: its process %s; starting it again in %.0f s", self.model_id, self.reason, backoff_seconds)
            await asyncio.sleep(backoff_seconds)

    async def _run_process(self) -> None:
        """Starts the process and returns when it has ended, with `state` FAILED if its file does not load."""
        self._ready_at: float | None = None
        async with contextlib.AsyncExitStack() as turn:
            await turn.enter_async_context(self._load_turns)
            self.state = WorkerState.LOADING
            try:
                reader = await self._spawn()
            except OSError as error:
                self.reason = f"could not be started ({error.strerror})"
                return
            while (frame := await read_frame(reader)) is not None:
                try:
                    self._receive(frame)
                except Exception:  # whatever it says, it must not end this task, which its requests wait for
                    log.exception("%s: its process does not keep to the protocol", self.model_id)
                    break
                if self.state is not WorkerState.LOADING:
                    # Loaded or failed: the next model may load.
                    await turn.aclose()
        failed = self.state is WorkerState.FAILED
        if not failed:
            self.state, self.reason = WorkerState.WAITING, "is ending"
        code = await self._end_process()
        if not failed:
            self.reason = describe_exit(code)
        self._fail_pending(f"the process of '{self.model_id}' {self.reason or 'ended'}; it is being started again")

    async def _spawn(self) -> asyncio.StreamReader:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "nlocalmodels_server.workers.main",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, **self._environ},
                start_new_session=True,
            )
        self.pid = self._process.pid
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._writer.write(encode_frame({"op": "load", "path": str(self.path), "options": asdict(self._options)}))
        return reader

    def _receive(self, frame: Frame) -> None:
        operation = frame["op"]
        if operation == "events":
            for request_id, text, finish_reason, num_prompt_tokens, num_new_tokens, error in frame["events"]:
                generation = self._pending.get(request_id)
                if generation is None:
                    continue
                if finish_reason is not None or error is not None:
                    del self._pending[request_id]
                if error is not None:
                    generation.sink(GenerationError(500, error, "generation_failed"))
                else:
                    generation.sink(Delta(text, finish_reason, num_prompt_tokens, num_new_tokens))
        elif operation == "accepted":
            generation = self._pending.get(frame["id"])
            if generation is not None and not generation.accepted.done():
                generation.accepted.set_result(frame["num_prompt_tokens"])
        elif operation == "refused":
            generation = self._pending.pop(frame["id"], None)
            if generation is not None and not generation.accepted.done():
                generation.accepted.set_exception(GenerationError(400, frame["message"], frame["code"]))
        elif operation == "ready":
            self.state, self.reason, self.info = WorkerState.READY, None, frame["info"]
            self._ready_at = time.monotonic()
            facts = ", ".join(f"{name} {value}" for name, value in self.info.items())
            log.info("%s: ready: %s, pid %d", self.model_id, facts, self.pid)
        elif operation == "failed":
            self.state, self.reason = WorkerState.FAILED, frame["reason"]
            log.error("%s: %s is not served: %s", self.model_id, self.path.name, self.reason)

    def _fail_pending(self, message: str) -> None:
        pending, self._pending = self._pending, {}
        for generation in pending.values():
            error = GenerationError(503, f"{message}.", "worker_ended", retry_after_seconds=2)
            if generation.accepted.done():
                generation.sink(error)
            else:
                generation.accepted.set_exception(error)

    async def _end_process(self) -> int | None:
        """Closes the socket, which ends a process that serves, and kills one that is busy."""
        process, self._process = self._process, None
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
        if process is None:
            return None
        try:
            code = await asyncio.wait_for(process.wait(), 1.0)
        except TimeoutError:
            process.kill()
            code = await process.wait()
        self.pid = None
        return code


def describe_exit(code: int | None) -> str:
    """Returns how a process ended, in words: `ended with exit code 70`, `was ended by SIGKILL (out of memory?)`."""
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
