"""The parent's side of a model's process: starts it, talks to it, starts it again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nlocalmodels_server.workers.exits import describe_exit
from nlocalmodels_server.workers.generation import Generation, GenerationError, Sink
from nlocalmodels_server.workers.heartbeat import Activity, Heartbeat
from nlocalmodels_server.workers.process import ModelProcess
from nlocalmodels_server.workers.protocol import Frame, GenerationRequest, LoadOptions
from nlocalmodels_server.workers.requests import RequestLimits, Requests
from nlocalmodels_server.workers.restarts import Restarts
from nlocalmodels_server.workers.state import WorkerState
from nlocalmodels_server.workers.turns import TurnTable

log = logging.getLogger(__name__)

_TICK_SECONDS = 0.5


class Worker:
    """One model and its process.

    Args:
        file_bytes: the size of what it loads.
        load_turns: bounds how many models load at once.
        options: how to load it; may be set anew until it starts.
        turn_table: by which the models' processes take turns in computing.
        limits: of its requests; may be set anew at any time.
    """

    def __init__(
        self,
        model_id: str,
        path: Path,
        file_bytes: int,
        options: LoadOptions,
        load_turns: asyncio.Semaphore,
        turn_table: TurnTable,
        limits: RequestLimits,
    ) -> None:
        self.model_id = model_id
        self.path = path
        self.state = WorkerState.UNLOADED if options.on_demand else WorkerState.WAITING
        self.reason: str | None = None
        self.info: dict[str, Any] = {}
        self.num_restarts = 0
        # Set once it has served, failed or been stopped.
        self.settled = asyncio.Event()
        self.last_used_seconds = time.monotonic()
        self._num_leases = 0
        self._idle = asyncio.Event()
        self._file_bytes = file_bytes
        self.options = options
        self._load_turns = load_turns
        self._turn_table = turn_table
        self.limits = limits
        self._heartbeat = Heartbeat(limits.hang_seconds)
        self._hang: str | None = None
        self._process: ModelProcess | None = None
        self._requests = Requests()
        self._next_id = 0
        self._task: asyncio.Task[None] | None = None

    def refuse(self, reason: str) -> None:
        """Counts it as failed, without a try or another one."""
        self.state, self.reason = WorkerState.FAILED, reason
        self.settled.set()
        log.error("%s: %s is not served: %s", self.model_id, self.path.name, reason)

    def start(self) -> None:
        self.state = WorkerState.WAITING
        self._task = asyncio.create_task(self._supervise(), name=f"worker {self.model_id}")

    @contextlib.contextmanager
    def lease(self) -> Iterator[None]:
        """Keeps the process for as long as a request is being handed over, also if it starts to drain meanwhile.

        Raises:
            GenerationError: it takes no new requests.
        """
        if self.state is not WorkerState.READY:
            raise self._not_ready()
        self.last_used_seconds = time.monotonic()
        self._num_leases += 1
        try:
            yield
        finally:
            self._num_leases -= 1
            self._tell_idle()

    def retire(self) -> None:
        """Takes no new requests from now on; `drain` then ends it."""
        if self.state is not WorkerState.DRAINING:
            self.state = WorkerState.DRAINING if self.state is WorkerState.READY else WorkerState.STOPPED
        self.settled.set()

    async def drain(self, grace_seconds: float) -> None:
        """Retires, lets finish what is under way for as long as `grace_seconds`, and ends the process."""
        self.retire()
        if self.state is WorkerState.DRAINING:
            self._tell_idle()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), grace_seconds)
        await self.stop(f"'{self.model_id}' is served no longer, and the {grace_seconds:g} s to finish are over")

    async def stop(self, reason: str = "the server is shutting down") -> None:
        """Ends the process and fails what is still under way."""
        self.state = WorkerState.STOPPED
        self.settled.set()
        self._idle.set()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        # The task may have set another one on its way out.
        self.state = WorkerState.STOPPED
        await self._end_process()
        self._fail_pending(reason)

    async def generate(self, request: GenerationRequest, sink: Sink) -> Generation:
        """Hands a request over and waits until it is accepted.

        Raises:
            GenerationError: not ready, queue full, or refused by the model (its context, its template).
        """
        if self.state not in (WorkerState.READY, WorkerState.DRAINING) or self._process is None:
            raise self._not_ready()
        if len(self._requests) >= self.limits.max_requests:
            raise GenerationError(
                429,
                f"'{self.model_id}' has {self.limits.max_requests} requests under way; try again later.",
                "queue_full",
                retry_after_seconds=self._requests.retry_after_seconds(),
            )
        self._next_id += 1
        generation = Generation(self, self._next_id, sink, request.max_new_tokens)
        self._requests.add(generation)
        self._process.send(request.to_frame(generation.request_id))
        try:
            await generation.accepted
        except asyncio.CancelledError:
            generation.cancel()
            raise
        return generation

    def cancel(self, generation: Generation) -> None:
        if self._requests.remove(generation.request_id) is not None and self._process is not None:
            self._process.send({"op": "cancel", "id": generation.request_id})
        self._tell_idle()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def wedged(self) -> str | None:
        """How its process hangs although it was killed long ago, which only a restart of the container can help; else None."""
        return self._heartbeat.find_hang(times=2.0)

    @property
    def num_requests(self) -> int:
        return len(self._requests) + self._num_leases

    def _tell_idle(self) -> None:
        if self.state is WorkerState.DRAINING and not self.num_requests:
            self._idle.set()

    def _not_ready(self) -> GenerationError:
        if self.state is WorkerState.FAILED:
            return GenerationError(503, f"'{self.model_id}' cannot be served: {self.reason}.", "model_failed")
        return GenerationError(
            503, f"'{self.model_id}' is {self.state.value}; try again soon.", "model_not_ready", retry_after_seconds=2
        )

    @property
    def is_available(self) -> bool:
        """Whether requests are served, after loading it if it loads on demand."""
        return self.state is WorkerState.READY or (self.options.on_demand and self.state is not WorkerState.FAILED)

    @property
    def waits_for_demand(self) -> bool:
        """Whether a request must have it loaded, or wait until another one's has."""
        return self.options.on_demand and self.state in (WorkerState.UNLOADED, WorkerState.WAITING, WorkerState.LOADING)

    @property
    def is_loading_first(self) -> bool:
        """Whether it has neither served nor failed since the start."""
        return self.state in (WorkerState.WAITING, WorkerState.LOADING) and not self.num_restarts

    async def _supervise(self) -> None:
        restarts = Restarts()
        while True:
            await self._run_process()
            if self.state in (WorkerState.FAILED, WorkerState.STOPPED):
                return
            self.state = WorkerState.WAITING
            wait_seconds = restarts.next_wait_seconds(None if self._ready_at is None else time.monotonic() - self._ready_at)
            if wait_seconds is None:
                self.refuse(f"its process {self.reason} while loading, {restarts.num_failed_loads} times")
                return
            self.num_restarts += 1
            log.error("%s: its process %s; starting it again in %.0f s", self.model_id, self.reason, wait_seconds)
            await asyncio.sleep(wait_seconds)

    async def _run_process(self) -> None:
        """Starts the process and returns when it has ended, with `state` FAILED if its file does not load."""
        self._ready_at: float | None = None
        async with contextlib.AsyncExitStack() as life, contextlib.AsyncExitStack() as turn:
            await turn.enter_async_context(self._load_turns)
            self.state = WorkerState.LOADING
            is_loaded = asyncio.Event()
            try:
                process = self._process = await ModelProcess.spawn(
                    self._turn_table, self.model_id, lambda frame: self._hear(frame, is_loaded)
                )
            except OSError as error:
                self.reason = f"could not be started ({error.strerror})"
                return
            process.send({"op": "load", "path": str(self.path), "options": asdict(self.options)})
            self._heartbeat = Heartbeat(self.limits.hang_seconds, self._file_bytes)
            self._heartbeat.expect(Activity.LOADING, True)
            watching = asyncio.create_task(self._watch(process), name=f"heartbeat {self.model_id}")
            life.callback(watching.cancel)
            loaded, ended = asyncio.create_task(is_loaded.wait()), asyncio.create_task(process.wait_ended())
            life.callback(loaded.cancel)
            life.callback(ended.cancel)
            await asyncio.wait({loaded, ended}, return_when=asyncio.FIRST_COMPLETED)
            # Loaded or failed: the next model may load.
            await turn.aclose()
            await ended
        failed, retired = self.state is WorkerState.FAILED, self.state in (WorkerState.DRAINING, WorkerState.STOPPED)
        if not failed:
            self.state, self.reason = WorkerState.STOPPED if retired else WorkerState.WAITING, "is ending"
        code = await self._end_process()
        hang, self._hang = self._hang, None
        if not failed:
            self.reason = describe_exit(code) if hang is None else f"{hang} and was ended"
        outlook = "it is served no longer" if retired else "it is being started again"
        self._fail_pending(f"the process of '{self.model_id}' {self.reason or 'ended'}; {outlook}")
        if retired:
            self._idle.set()

    async def _watch(self, process: ModelProcess) -> None:
        """Ends a process that hangs, and overdue requests. A hang is counted in ticks: a suspended machine is none."""
        heartbeat, requests = self._heartbeat, self._requests
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            for request_id in requests.end_overdue(self.limits.request_seconds):
                process.send({"op": "cancel", "id": request_id})
            self._tell_idle()
            requests.pass_time(_TICK_SECONDS)
            heartbeat.expect(Activity.LOADING, self.state is WorkerState.LOADING)
            heartbeat.expect(Activity.TOKENIZING, requests.has_unaccepted)
            heartbeat.expect(Activity.COMPUTING, requests.has_accepted)
            heartbeat.pass_time(_TICK_SECONDS)
            if self._hang is None and (hang := heartbeat.find_hang()) is not None:
                log.error("%s: its process %s; ending it", self.model_id, hang)
                self._hang = hang
                process.kill()

    def _hear(self, frame: Frame, is_loaded: asyncio.Event) -> None:
        self._receive(frame)
        if self.state is not WorkerState.LOADING:
            is_loaded.set()

    def _receive(self, frame: Frame) -> None:
        operation = frame["op"]
        if operation in ("events", "beat"):
            self._heartbeat.hear(Activity.COMPUTING)
        elif operation in ("accepted", "refused"):
            self._heartbeat.hear(Activity.TOKENIZING)
        if operation == "events":
            self._requests.receive(frame["events"])
            self._tell_idle()
        elif operation == "accepted":
            self._requests.accept(frame["id"], frame["num_prompt_tokens"])
        elif operation == "refused":
            self._requests.refuse(frame)
            self._tell_idle()
        elif self.state is WorkerState.STOPPED:
            pass  # it is about to be ended
        elif operation == "ready":
            self.settled.set()
            self.state, self.reason, self.info = WorkerState.READY, None, frame["info"]
            self._ready_at = time.monotonic()
            reasons = {name: f" ({reason})" for name, reason in frame["reasons"].items()}
            facts = ", ".join(f"{name} {value}{reasons.get(name, '')}" for name, value in self.info.items())
            log.info("%s: ready: %s, pid %d", self.model_id, facts, self.pid)
        elif operation == "failed":
            self.settled.set()
            self.state, self.reason = WorkerState.FAILED, frame["reason"]
            log.error("%s: %s is not served: %s", self.model_id, self.path.name, self.reason)

    def _fail_pending(self, message: str) -> None:
        self._requests.fail_all(GenerationError(503, f"{message}.", "worker_ended", retry_after_seconds=2))

    async def _end_process(self) -> int | None:
        process, self._process = self._process, None
        return None if process is None else await process.end()
