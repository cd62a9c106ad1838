"""How many tokens a context holds, from the model and a memory budget."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_CONTEXT_TOKENS = 8192
# What the caches of concurrent requests may take beyond one request's full context.
KV_BUDGET_BYTES = 1024**3
_CELL_ROUNDING = 256


@dataclass(frozen=True, slots=True)
class Sizes:
    """`context_tokens` is the most that one request may use, `num_cells` what all together share."""

    context_tokens: int
    num_cells: int


def choose_sizes(
    trained_context_tokens: int,
    kv_bytes_per_token: int,
    num_slots: int,
    context_tokens: int | None = None,
    budget_bytes: int | None = None,
) -> Sizes:
    """Returns one request's context, and a pool that the budget allows: at least one full context, at most one per slot.

    Args:
        budget_bytes: what memory leaves for the pool, if that is less than it would take.
    """
    context = min(trained_context_tokens, context_tokens or DEFAULT_CONTEXT_TOKENS)
    affordable = min(KV_BUDGET_BYTES, budget_bytes or KV_BUDGET_BYTES) // max(1, kv_bytes_per_token)
    cells = max(context, min(affordable, context * num_slots, 4 * DEFAULT_CONTEXT_TOKENS))
    return Sizes(context, -(-cells // _CELL_ROUNDING) * _CELL_ROUNDING)
