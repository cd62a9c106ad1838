"""Which models fit into the container's memory, and how much of it their caches may have. Pure.

The arithmetic is the chart's (templates/_sizes.tpl): weights, caches and 400 MiB for each model, and 256 MiB for the server.
A model is refused by less, since that is on the safe side: small ones have small buffers, and the server alone takes a third.
Weights count once: llama.cpp maps the file and copies some of it for speed, and what is mapped and copied can be taken back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nlocalmodels_server.engine.sizing import KV_BUDGET_BYTES, choose_sizes
from nlocalmodels_server.models.gguf_header import Shape

BESIDE_MODEL_BYTES = 400 * 1024**2
BESIDE_MODELS_BYTES = 256 * 1024**2
# What a process takes with a model of no size, and the server's own with nothing to do: measured 85 and 35 MiB.
_LEAST_BESIDE_MODEL_BYTES = 96 * 1024**2
_LEAST_BESIDE_MODELS_BYTES = 96 * 1024**2


@dataclass(frozen=True, slots=True)
class Need:
    """What a model takes. `least_cache_bytes` holds one full context, `cache_bytes` what it would have with room for all."""

    weights_bytes: int
    cache_bytes: int
    least_cache_bytes: int

    @property
    def beside_bytes(self) -> int:
        """What llama.cpp and Python need beside them: buffers go with the vocabulary and the width, and so with the weights."""
        return min(BESIDE_MODEL_BYTES, _LEAST_BESIDE_MODEL_BYTES + 3 * self.weights_bytes)

    @property
    def least_bytes(self) -> int:
        return self.weights_bytes + self.least_cache_bytes + self.beside_bytes

    def __str__(self) -> str:
        parts = f"{_mib(self.weights_bytes)} weights + {_mib(self.least_cache_bytes)} cache for one context"
        return f"{_mib(self.least_bytes)} MiB ({parts} + {_mib(self.beside_bytes)} beside)"


def need(weights_bytes: int, shape: Shape | None, num_slots: int, context_tokens: int | None, kv_value_bytes: float) -> Need:
    """Returns a model's need. One of unknown shape may take the most that the server gives, but is not held to need it."""
    if shape is None:
        return Need(weights_bytes, KV_BUDGET_BYTES, 0)
    per_token = int(shape.kv_values_per_token * kv_value_bytes)
    asked = shape.trained_context_tokens, per_token, num_slots, context_tokens
    cells, least_cells = choose_sizes(*asked).num_cells, choose_sizes(*asked, budget_bytes=1).num_cells
    return Need(weights_bytes, cells * per_token, least_cells * per_token)


class MemoryPlan:
    """What has been given to which model.

    Args:
        limit_bytes: the container's; None: none, and all get what they want.
    """

    def __init__(self, limit_bytes: int | None) -> None:
        self._limit_bytes = limit_bytes
        self._given: dict[str, int] = {}
        self._reserved_bytes = 0

    def reserve(self, num_bytes: int) -> None:
        """Keeps so much free of caches that are more than one context, for a model that loads later."""
        self._reserved_bytes = max(self._reserved_bytes, num_bytes)

    def give_all(self, needs: Mapping[str, Need]) -> dict[str, int]:
        """Gives each model that fits its least, in order, then more cache, in order; returns the cache's bytes by model."""
        fitting = {}
        for model_id, one in needs.items():
            if self.find_shortage(one) is None:
                self._given[model_id] = one.least_bytes
                fitting[model_id] = one
        return {model_id: self._grow(model_id, one, self._reserved_bytes) for model_id, one in fitting.items()}

    def give(self, model_id: str, one: Need) -> int:
        """Gives a model its least, whether it fits or not, and more cache if there is room; returns the cache's bytes."""
        self._given[model_id] = one.least_bytes
        return self._grow(model_id, one, 0)

    def take_back(self, model_id: str) -> None:
        self._given.pop(model_id, None)

    def rename(self, old_id: str, new_id: str) -> None:
        if old_id in self._given:
            self._given[new_id] = self._given.pop(old_id)

    def find_shortage(self, one: Need, without: str | None = None) -> str | None:
        """Returns why a model does not fit beside the others, with the arithmetic; None if it does.

        Args:
            without: a model that would end first.
        """
        given = sum(num_bytes for model_id, num_bytes in self._given.items() if model_id != without)
        if self._limit_bytes is None or given + one.least_bytes + _LEAST_BESIDE_MODELS_BYTES <= self._limit_bytes:
            return None
        free_bytes = max(0, self._limit_bytes - _LEAST_BESIDE_MODELS_BYTES - given)
        return (
            f"it needs {one}, and {_mib(free_bytes)} MiB are free (memory limit {_mib(self._limit_bytes)} - "
            f"{_mib(_LEAST_BESIDE_MODELS_BYTES)} for the server - {_mib(given)} for other models); "
            "raise the memory limit, set its contextTokens lower, or serve fewer models"
        )

    def _grow(self, model_id: str, one: Need, reserved_bytes: int) -> int:
        more_bytes = one.cache_bytes - one.least_cache_bytes
        if self._limit_bytes is not None:
            free_bytes = self._limit_bytes - BESIDE_MODELS_BYTES - sum(self._given.values()) - reserved_bytes
            more_bytes = min(more_bytes, max(0, free_bytes))
        self._given[model_id] += more_bytes
        return one.least_cache_bytes + more_bytes


def _mib(num_bytes: int) -> int:
    return -(-num_bytes // 1024**2)
