"""The processes of all models: starts them, swaps one for another, lets them drain. It carries plans out and makes none."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nlocalmodels_server.memory import Memory, read_memory
from nlocalmodels_server.models.admission import Admission
from nlocalmodels_server.models.on_demand import OnDemand
from nlocalmodels_server.models.reload import Plan, Target, find_shortage
from nlocalmodels_server.models.slot import Replacement, Slot
from nlocalmodels_server.workers.requests import RequestLimits
from nlocalmodels_server.workers.state import WorkerState
from nlocalmodels_server.workers.turns import TurnTable
from nlocalmodels_server.workers.worker import Worker

log = logging.getLogger(__name__)

_NUM_LOADS_AT_ONCE = 2
_NOT_SERVING = (WorkerState.UNLOADED, WorkerState.FAILED, WorkerState.DRAINING, WorkerState.STOPPED)


class Fleet:
    """All of it belongs to the event loop.

    Args:
        on_settled: called when a model that was added or changed serves, or has failed.
        spare: returns the ids of models that are only kept until others serve, and go first where memory is short.
        memory: what the container has; a model that does not fit beside the one it replaces is loaded after that has ended.
    """

    def __init__(
        self,
        model_path: Path,
        on_settled: Callable[[], None],
        spare: Callable[[], list[str]],
        memory: Callable[[], Memory | None] = read_memory,
    ) -> None:
        self.slots: dict[str, Slot] = {}
        self.draining: dict[Worker, asyncio.Task[None]] = {}
        self.grace_seconds = 60.0
        self._limits = RequestLimits()
        self._on_settled = on_settled
        self._spare = spare
        self._model_path = model_path
        self._memory = memory
        self._turn_table = TurnTable()
        self._load_turns = asyncio.Semaphore(_NUM_LOADS_AT_ONCE)
        # One model at a time, since what is free is only known when the one before it has loaded.
        self._reload_turn = asyncio.Lock()
        self.admission = Admission(model_path, memory)
        self._on_demand = OnDemand(self.slots, self.admission, self._worker, self._evict)
        self._tasks: set[asyncio.Task[None]] = set()
        self._first: list[Worker] = []

    async def start(self, targets: Sequence[Target]) -> None:
        """Starts the processes that are there from the start, in order, but for those that do not fit or load on demand."""
        self._turn_table.is_shared = len(targets) > 1
        refused = await self.admission.plan(targets)
        for target in targets:
            slot = self.slots[target.id] = Slot(target, self._worker(target))
            if target.id in refused:
                slot.worker.refuse(refused[target.id])
            elif not target.options.on_demand:
                self._first.append(slot.worker)
                slot.worker.start()

    @contextmanager
    def hold(self, model_id: str) -> Iterator[None]:
        """Keeps a model that loads on demand from being evicted for as long as the block lasts."""
        slot = self.slots[model_id]
        slot.num_waiting += 1
        try:
            yield
        finally:
            slot.num_waiting -= 1

    async def load_on_demand(self, model_id: str) -> None:
        """Returns when a model that loads on demand serves or has failed; it should be held meanwhile.

        Raises:
            GenerationError: there is no memory for it now, or it has not loaded in time.
        """
        await self._on_demand.load(self.slots[model_id])

    def limit(self, limits: RequestLimits) -> None:
        """Sets what requests may take, from now on."""
        self._limits = limits
        for worker in self._workers():
            worker.limits = limits

    async def stop(self) -> None:
        await self._on_demand.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(worker.stop() for worker in self._workers()))
        await asyncio.gather(*self._tasks, *self.draining.values(), return_exceptions=True)
        self._turn_table.close()

    def loading_first(self) -> list[str]:
        """Returns which models of the server's start have neither loaded nor failed yet; added ones do not count."""
        serving = {slot.worker: model_id for model_id, slot in self.slots.items()}
        self._first = [worker for worker in self._first if worker.is_loading_first and worker in serving]
        return sorted(serving[worker] for worker in self._first)

    def carry_out(self, plan: Plan, wanted: Mapping[str, Target]) -> None:
        """Begins what a plan says and returns at once."""
        for new, old in plan.renamed:
            slot = self.slots[new] = self.slots.pop(old)
            self.admission.rename(old, new)
            for worker in (slot.worker, *((slot.replacement.worker,) if slot.replacement is not None else ())):
                worker.model_id = new
            if slot.replacement is None:
                slot.target = wanted[new]
            else:
                slot.replacement.target = wanted[new]
            log.info("model-renamed: '%s' is now '%s', in the same process", old, new)
        for model_id in plan.removed:
            self.remove(model_id)
        self._turn_table.is_shared = len(wanted) > 1
        for model_id in plan.added:
            slot = Slot(wanted[model_id], self._worker(wanted[model_id]))
            self.slots[model_id] = slot
            log.info("model-added: '%s': loading %s", model_id, slot.target.file)
            if not slot.target.options.on_demand:
                self._begin(self._load(slot, slot.worker, slot.target))
        for model_id, difference in plan.changed:
            self._change(self.slots[model_id], wanted[model_id], difference)

    def remove(self, model_id: str) -> None:
        slot = self.slots.pop(model_id)
        self.admission.take_back(model_id)
        if slot.replacement is not None:
            self._retire(slot.replacement.worker)
        num_requests = slot.worker.num_requests
        log.info("model-removed: '%s': %d requests under way, %g s to finish", model_id, num_requests, self.grace_seconds)
        self._retire(slot.worker)

    def _change(self, slot: Slot, target: Target, difference: str) -> None:
        if slot.replacement is not None:
            self._retire(slot.replacement.worker)
            slot.replacement = None
        is_over = slot.worker.state in _NOT_SERVING
        if target == slot.target and not is_over:
            log.info("model-kept: '%s': %s is wanted again", target.id, target.file)
            return
        worker = self._worker(target)
        if is_over or slot.worker.is_loading_first:
            log.info("model-changed: '%s': %s; loading it", target.id, difference)
            if slot.worker in self._first:
                self._first.append(worker)
            self._retire(slot.worker)
            slot.worker, slot.target = worker, target
            if target.options.on_demand:
                return
        else:
            log.info("model-changed: '%s': %s; loading it, the old one serves until then", target.id, difference)
            slot.replacement = Replacement(target, worker)
        self._begin(self._load(slot, worker, target))

    async def _load(self, slot: Slot, worker: Worker, target: Target) -> None:
        async with self._reload_turn:
            await self._make_room(slot, worker, target)
            await self._on_demand.admit(slot, target)
            if worker.state is WorkerState.STOPPED:
                return  # something else is wanted by now
            worker.options = self.admission.options(target)
            worker.start()
            await worker.settled.wait()
        if slot.replacement is not None and slot.replacement.worker is worker:
            if worker.state is WorkerState.READY:
                old, slot.worker, slot.target, slot.replacement = slot.worker, worker, target, None
                log.info(
                    "model-changed: '%s': the new process serves, %d requests finish in the old", target.id, old.num_requests
                )
                self._retire(old)
            elif worker.state is WorkerState.FAILED:
                log.error("model-changed: '%s': the old one goes on serving, the new one failed: %s", target.id, worker.reason)
        self._on_settled()

    async def _make_room(self, slot: Slot, worker: Worker, target: Target) -> None:
        """Waits for memory that is about to become free, and at last ends the process that the new one replaces."""
        shortage = find_shortage(target, self._memory())
        if shortage is not None and (self.draining or self._spare()):
            log.warning("%s: %s; waiting for what is being removed to end", target.id, shortage)
            for model_id in self._spare():
                self.remove(model_id)
            await asyncio.gather(*self.draining.values(), return_exceptions=True)
            shortage = find_shortage(target, self._memory())
        if shortage is None or worker.state is WorkerState.STOPPED:
            return
        if slot.replacement is None or slot.replacement.worker is not worker:
            log.warning("%s: %s; loading it all the same", target.id, shortage)
            return
        log.warning("model-changed: '%s': no memory for both: %s; the old one ends first", target.id, shortage)
        await self._retire(slot.worker)
        if slot.replacement is not None and slot.replacement.worker is worker:
            slot.worker, slot.target, slot.replacement = worker, target, None

    def _workers(self) -> list[Worker]:
        """Returns all there are, whatever their state."""
        workers = [slot.worker for slot in self.slots.values()] + list(self.draining)
        return workers + [slot.replacement.worker for slot in self.slots.values() if slot.replacement is not None]

    def wedged(self) -> dict[str, str]:
        """Returns, by model, how a process hangs that could not be ended."""
        return {worker.model_id: hang for worker in self._workers() if (hang := worker.wedged) is not None}

    def _worker(self, target: Target) -> Worker:
        path, options = self._model_path / target.file, self.admission.options(target)
        return Worker(target.id, path, target.size_bytes, options, self._load_turns, self._turn_table, self._limits)

    async def _evict(self, slot: Slot) -> None:
        """Ends the process of a model that loads on demand, when its requests have finished."""
        old, slot.worker = slot.worker, self._worker(slot.target)
        await self._retire(old, self._limits.request_seconds)
        self.admission.take_back(slot.target.id)

    def _retire(self, worker: Worker, grace_seconds: float | None = None) -> asyncio.Task[None]:
        """Takes requests from a process at once; it ends when the last one under way has finished, or the grace is over."""
        worker.retire()
        task = asyncio.create_task(
            worker.drain(self.grace_seconds if grace_seconds is None else grace_seconds), name=f"drain {worker.model_id}"
        )
        self.draining[worker] = task
        task.add_done_callback(lambda _: self.draining.pop(worker, None))
        return task

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a change of the models failed", exc_info=error)
