"""From a file to an engine that has computed a first token."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nlocalmodels_server.engine import llama
from nlocalmodels_server.engine.choices import Choices, Wishes, choose
from nlocalmodels_server.engine.context import Context, ContextParams
from nlocalmodels_server.engine.loop import Engine, Event
from nlocalmodels_server.engine.pacing import StepCosts
from nlocalmodels_server.engine.scheduler import Scheduler
from nlocalmodels_server.engine.step import Limits
from nlocalmodels_server.engine.widening import widen
from nlocalmodels_server.workers.protocol import LoadOptions

log = logging.getLogger(__name__)

# More rows in a step make prompts hardly faster, only the wait longer until the next step.
_NUM_BATCH_TOKENS = 256
# Ended sequences whose cells are kept for prompts with the same beginning. llama.cpp has a row of logits over the whole
# vocabulary for each sequence that it may hold, and so there are as many rows for guesses.
_NUM_KEPT = 16
_MAX_SEQUENCES = 256
# What a stream waits for its next token while others' prompts are computed: five tokens a second are still read as a flow.
_INTER_TOKEN_MILLISECONDS = 200


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready: `info` and `reasons` say how it was set up."""

    engine: Engine
    model: llama.Model
    context_tokens: int
    info: dict[str, Any]
    reasons: dict[str, str]


def load(
    path: Path,
    options: LoadOptions,
    emit: Callable[[list[Event]], None],
    turn: contextlib.AbstractContextManager[object],
    beat: Callable[[], None],
) -> Loaded:
    """Loads a model. The thread that calls this is the one that runs the engine.

    OpenMP keeps a team of threads for each thread that computes, and some weights are rearranged by one while they load. Once
    there are more of these threads than cores, none spins at its barriers any more, and decoding takes twice as long for good.

    Raises:
        LoadError: the file does not load, cannot generate, or does not compute.
    """
    capture = llama.start_backend()
    model, weights = _load_model(path, options.widen_weights, capture)
    if not model.can_generate():
        raise llama.LoadError("it is an encoder or embedding model, which cannot generate text")
    chosen = _choose(model, options)
    # Where a state cannot be shared in part, each slot has one of its own, which takes memory.
    num_kept = min(_NUM_KEPT, _MAX_SEQUENCES - options.num_slots) if model.shares_partially() else 0
    num_sequences = options.num_slots + num_kept
    params = ContextParams(
        chosen.sizes.num_cells,
        num_sequences,
        _NUM_BATCH_TOKENS,
        options.num_threads,
        chosen.num_prefill_threads,
        chosen.kv_type,
        chosen.flash_attention,
    )
    context = Context(model, params, capture)
    limits = Limits(
        num_slots=options.num_slots,
        num_cells=context.num_cells,
        num_batch_tokens=_NUM_BATCH_TOKENS,
        num_output_rows=num_sequences,
        num_kept=num_kept,
        max_step_seconds=(options.inter_token_milliseconds or _INTER_TOKEN_MILLISECONDS) / 1000,
        shares_partially=model.shares_partially(),
    )
    costs = StepCosts()
    costs.record(1, 0, context.warm_up())
    engine = Engine(model, context, Scheduler(limits, costs, context.can_share), costs, emit, turn, beat)
    info = {
        "description": model.description(),
        "sizeBytes": model.size_bytes,
        "weights": weights.value,
        "contextTokens": chosen.sizes.context_tokens,
        "numCells": context.num_cells,
        "numSlots": options.num_slots,
        "numThreads": options.num_threads,
        "numPrefillThreads": chosen.num_prefill_threads,
        "kvType": chosen.kv_type,
        "flashAttention": {None: "auto", True: "on", False: "off"}[chosen.flash_attention],
    }
    return Loaded(engine, model, chosen.sizes.context_tokens, info, {**chosen.reasons, "weights": weights.reason})


@dataclass(frozen=True, slots=True)
class _Weights:
    """What became of the file's weights, and why."""

    value: str
    reason: str


def _load_model(path: Path, is_wished: bool | None, capture: llama.LogCapture) -> tuple[llama.Model, _Weights]:
    """Loads the weights, in a wider type where that is faster."""
    is_widened, reason, widened = is_wished, "as told", None
    if is_widened is None:
        is_widened = llama.has_amx()
        reason = "the same values, which AMX multiplies faster" if is_widened else "without AMX, wider ones are no faster"
    if is_widened:
        try:
            widened = widen(path)
        except OSError as error:
            log.warning("weights stay as they are in the file: no copy of it could be written (%s)", error.strerror)
        if widened is None:
            reason = "nothing that would be faster in another type, or too large for it"
    if widened is None:
        return llama.Model(path, capture), _Weights("as in the file", reason)
    with contextlib.closing(widened):
        # Copied, so that the file in memory goes.
        model = llama.Model(widened.path, capture, is_mapped=False)
    return model, _Weights(f"{widened.num_tensors} of Q5_0 as Q8_0", reason)


def _choose(model: llama.Model, options: LoadOptions) -> Choices:
    wishes = Wishes(**{field.name: getattr(options, field.name) for field in fields(Wishes)})
    return choose(wishes, model.trained_context_tokens, model.kv_bytes_per_token(), model.is_full_precision())
