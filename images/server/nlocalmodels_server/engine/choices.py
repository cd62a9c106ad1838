"""How a model is set up in its process: each choice with its reason, for one line of the log. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from nlocalmodels_server.engine.sizing import Sizes, choose_sizes

_TOLD = "as told"
# Bytes of a value; q8_0 keeps 32 values in 34 bytes.
KV_VALUE_BYTES = {"f16": 2.0, "q8_0": 34 / 32, "f32": 4.0}


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is told of a model; None leaves the choice. `num_threads` comes with its reason, which the parent knows."""

    num_threads: int
    threads_reason: str
    num_slots: int
    context_tokens: int | None = None
    num_prefill_threads: int | None = None
    kv_type: str | None = None
    flash_attention: bool | None = None
    kv_budget_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Choices:
    """What was chosen; `reasons` has a word or two for each, by the names that the model's facts have."""

    sizes: Sizes
    num_prefill_threads: int
    kv_type: str
    flash_attention: bool | None
    reasons: dict[str, str]


def own_kv_type(is_full_precision: bool) -> str:
    """Returns the type that a model's cache has unless another is told: the one its weights deserve."""
    return "f32" if is_full_precision else "f16"


def choose(wishes: Wishes, trained_context_tokens: int, kv_bytes_per_token: int, is_full_precision: bool) -> Choices:
    """Chooses the key-value type by the weights, cells by memory, and the rest by what is told.

    Args:
        kv_bytes_per_token: with the type that the weights ask for.
    """
    own_type = own_kv_type(is_full_precision)
    kv_type = wishes.kv_type or own_type
    kv_bytes_per_token = int(kv_bytes_per_token * KV_VALUE_BYTES[kv_type] / KV_VALUE_BYTES[own_type])
    asked = wishes.num_slots, wishes.context_tokens
    sizes = choose_sizes(trained_context_tokens, kv_bytes_per_token, *asked, wishes.kv_budget_bytes)
    is_short = sizes != choose_sizes(trained_context_tokens, kv_bytes_per_token, *asked)
    # Exact results need plain attention as well (docs/decisions/0004-exact-f32.md), but not where something else is told.
    is_exact = is_full_precision and kv_type == "f32" and wishes.flash_attention is None
    flash_attention = False if is_exact else wishes.flash_attention
    num_kv_mib = sizes.num_cells * kv_bytes_per_token // 2**20
    pool = "what the memory limit leaves" if is_short else "for several requests"
    reasons = {
        "contextTokens": _reason_of_context(sizes.context_tokens, wishes.context_tokens, trained_context_tokens),
        "numCells": f"{num_kv_mib} MiB of cache, {pool}",
        "numSlots": _TOLD,
        "numThreads": wishes.threads_reason,
        "numPrefillThreads": "as numThreads" if wishes.num_prefill_threads is None else _TOLD,
        "kvType": _TOLD if wishes.kv_type else "exact, since all weights are F32" if is_full_precision else "half of F32",
        "flashAttention": "exact results" if is_exact else "where llama.cpp can" if flash_attention is None else _TOLD,
    }
    return Choices(sizes, wishes.num_prefill_threads or wishes.num_threads, kv_type, flash_attention, reasons)


def _reason_of_context(chosen_tokens: int, told_tokens: int | None, trained_tokens: int) -> str:
    if chosen_tokens == trained_tokens:
        return "as trained"
    return _TOLD if told_tokens is not None else f"by default, of {trained_tokens} trained"
