"""Which models may load into the container's memory: the plan of `memory_plan`, with what it needs to know of the files."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from nlocalmodels_server.engine.choices import KV_VALUE_BYTES, own_kv_type
from nlocalmodels_server.memory import Memory
from nlocalmodels_server.models.gguf_header import Shape, read_shape
from nlocalmodels_server.models.memory_plan import MemoryPlan, Need, need
from nlocalmodels_server.models.reload import Target
from nlocalmodels_server.workers.protocol import LoadOptions

log = logging.getLogger(__name__)


class Admission:
    """Plans when the server starts, and again for each model that loads later."""

    def __init__(self, model_path: Path, memory: Callable[[], Memory | None]) -> None:
        self._model_path = model_path
        self._memory = memory
        self._plan = MemoryPlan(None)
        self._cache_bytes: dict[str, int] = {}
        # By id, what a file's header said, and of which file: a model that waits for room asks again and again.
        self._shapes: dict[str, tuple[Target, Shape | None]] = {}

    async def plan(self, targets: Sequence[Target]) -> dict[str, str]:
        """Gives memory to the models that are there from the start, and returns by id why others cannot be served at all."""
        memory = await asyncio.to_thread(self._memory)
        self._plan = MemoryPlan(None if memory is None else memory.limit_bytes)
        needs = dict(zip([target.id for target in targets], await self._needs(targets), strict=True))
        later = {target.id for target in targets if target.options.on_demand}
        for model_id in later:
            if self._plan.find_shortage(needs[model_id]) is None:
                self._plan.reserve(needs[model_id].least_bytes)
        self._cache_bytes = self._plan.give_all({model_id: one for model_id, one in needs.items() if model_id not in later})
        refused = {
            model_id: self._plan.find_shortage(one) for model_id, one in needs.items() if model_id not in self._cache_bytes
        }
        return {model_id: reason for model_id, reason in refused.items() if reason is not None}

    async def find_shortage(self, target: Target) -> str | None:
        """Returns why a model does not fit beside what is loaded, with the arithmetic."""
        one = await self._need(target)
        return self._plan.find_shortage(one, without=target.id)

    async def give(self, target: Target) -> None:
        one = await self._need(target)
        self._cache_bytes[target.id] = self._plan.give(target.id, one)

    def take_back(self, model_id: str) -> None:
        self._cache_bytes.pop(model_id, None)
        self._plan.take_back(model_id)

    def rename(self, old_id: str, new_id: str) -> None:
        """Notes that a process goes by another id now."""
        self._plan.rename(old_id, new_id)
        if old_id in self._cache_bytes:
            self._cache_bytes[new_id] = self._cache_bytes.pop(old_id)

    def options(self, target: Target) -> LoadOptions:
        """Returns how to load it, with the room that its cache has."""
        return replace(target.options, kv_budget_bytes=self._cache_bytes.get(target.id))

    async def _needs(self, targets: Sequence[Target]) -> list[Need]:
        return [await self._need(target) for target in targets]

    async def _need(self, target: Target) -> Need:
        known, shape = self._shapes.get(target.id, (None, None))
        if shape is None or known != target:
            shape = await asyncio.to_thread(read_shape, self._model_path / target.file)
            self._shapes[target.id] = target, shape
        options = target.options
        kv_type = options.kv_type or own_kv_type(shape is not None and shape.is_full_precision)
        return need(target.size_bytes, shape, options.num_slots, options.context_tokens, KV_VALUE_BYTES[kv_type])
