"""Models that load with their first request, and go again, the least recently used first, when another needs their memory."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from nlocalmodels_server.models.admission import Admission
from nlocalmodels_server.models.reload import Target
from nlocalmodels_server.models.slot import Slot
from nlocalmodels_server.workers.generation import GenerationError
from nlocalmodels_server.workers.state import WorkerState
from nlocalmodels_server.workers.worker import Worker

log = logging.getLogger(__name__)

# A request waits so long for its model.
WAIT_SECONDS = 300.0
_POLL_SECONDS = 0.05
_RETRY_SECONDS = 10


class OnDemand:
    """All of it belongs to the event loop.

    Args:
        worker: makes a process for a target, not started yet.
        evict: ends a model's process.
    """

    def __init__(
        self,
        slots: Mapping[str, Slot],
        admission: Admission,
        worker: Callable[[Target], Worker],
        evict: Callable[[Slot], Awaitable[None]],
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self._slots = slots
        self._admission = admission
        self._worker = worker
        self._evict = evict
        self._wait_seconds = wait_seconds
        # What fits is decided for one model at a time.
        self._decision = asyncio.Lock()

    async def load(self, slot: Slot) -> None:
        """Returns when the model serves or has failed. Requests that come at once share one load.

        Raises:
            GenerationError: there is no memory for it now, or it has not loaded in time.
        """
        if slot.loading is None:
            slot.loading = asyncio.create_task(self._load(slot), name=f"load {slot.target.id}")
            slot.loading.add_done_callback(lambda task: self._end(slot, task))
        # One request's end must not end the load, which others may wait for.
        await asyncio.shield(slot.loading)

    async def admit(self, slot: Slot, target: Target) -> None:
        """Makes room for a model that is there all the time, as far as models that load on demand can go, and counts it."""
        async with self._decision:
            with contextlib.suppress(GenerationError):
                await self._make_room(slot, target)
            await self._admission.give(target)

    async def stop(self) -> None:
        """Ends what is under way."""
        tasks = [slot.loading for slot in self._slots.values() if slot.loading is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @staticmethod
    def _end(slot: Slot, task: asyncio.Task[None]) -> None:
        slot.loading = None
        if not task.cancelled():
            task.exception()  # for those who wait for it, if there still are any

    async def _load(self, slot: Slot) -> None:
        model_id = slot.target.id
        try:
            async with asyncio.timeout(self._wait_seconds):
                async with self._decision:
                    if slot.worker.state is WorkerState.UNLOADED:
                        await self._make_room(slot, slot.target)
                        await self._admission.give(slot.target)
                        slot.worker = self._worker(slot.target)
                        log.info("model-loading: '%s': a request asks for it", model_id)
                        slot.worker.start()
                await slot.worker.settled.wait()
        except TimeoutError:
            message = f"'{model_id}' has not loaded within {self._wait_seconds:g} s; try again later."
            raise GenerationError(503, message, "model_not_ready", retry_after_seconds=_RETRY_SECONDS) from None
        if slot.worker.state is WorkerState.FAILED:
            self._admission.take_back(model_id)

    async def _make_room(self, slot: Slot, target: Target) -> None:
        """Evicts until the model fits: an idle one, or else one that takes no new requests and finishes those it has.

        Raises:
            GenerationError: it does not fit even when all that can go have gone.
        """
        while (shortage := await self._admission.find_shortage(target)) is not None:
            others = [other for other in self._slots.values() if other is not slot and _can_go(other)]
            if not others:
                message = f"'{target.id}' cannot load: {shortage}."
                raise GenerationError(503, message, "no_memory", retry_after_seconds=_RETRY_SECONDS)
            evictable = [other for other in others if other.worker.state is WorkerState.READY and not other.num_waiting]
            if not evictable:
                await asyncio.sleep(_POLL_SECONDS)
                continue
            oldest = min(evictable, key=lambda other: (other.worker.num_requests > 0, other.worker.last_used_seconds))
            log.warning(
                "model-evicted: '%s', last asked %.0f s ago, %d requests to finish: '%s' is to load, and %s",
                oldest.target.id,
                time.monotonic() - oldest.worker.last_used_seconds,
                oldest.worker.num_requests,
                target.id,
                shortage,
            )
            await self._evict(oldest)


def _can_go(slot: Slot) -> bool:
    """Whether it loads on demand and takes memory now."""
    return slot.target.options.on_demand and slot.worker.state in (WorkerState.WAITING, WorkerState.LOADING, WorkerState.READY)
