"""What scheduler and loop say to each other: the bounds of a step, what it computes, and what it does to the cache before."""

from __future__ import annotations

from dataclasses import dataclass, field

from nlocalmodels_server.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Limits:
    """What one context can hold and one step may take.

    `num_slots` sequences run at once; `num_kept` more can be kept for their prefixes. A step with decoding sequences takes at
    most `max_step_seconds`, which is what a stream then waits for its next token, and one with prompts only
    `max_prefill_seconds`, which is what a new request or a cancellation waits. `num_output_rows` are the rows of a step that
    may yield a token.
    `num_headroom_tokens` must stay free beyond a new sequence's prompt, or admitting it would only push another one out.
    An ended sequence is kept if it alone holds `num_worthwhile_cells`; several hold `num_kept_cells` at most.
    Without `shares_partially`, as in recurrent models, a sequence's state cannot be cut: it is taken whole or not at all.
    """

    num_slots: int
    num_cells: int
    num_batch_tokens: int
    num_output_rows: int
    num_kept: int = 0
    max_step_seconds: float = 0.2
    max_prefill_seconds: float = 1.0
    num_headroom_tokens: int = 32
    num_worthwhile_cells: int = 64
    num_kept_cells: int = 4096
    shares_partially: bool = True


@dataclass(frozen=True, slots=True)
class Work:
    """The next `num_tokens` uncomputed tokens of a sequence, and guessed ones after them.

    If they are its last, the step yields its next token, and one more for each guess that was right.
    """

    sequence: Sequence
    num_tokens: int
    draft: tuple[int, ...] = ()

    @property
    def yields_token(self) -> bool:
        return self.num_tokens == self.sequence.num_uncomputed

    @property
    def num_rows(self) -> int:
        return self.num_tokens + len(self.draft)


@dataclass(frozen=True, slots=True)
class Copy:
    """Gives `slot` the first `num_tokens` cells of `source`, shared, not copied."""

    source: int
    slot: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Cut:
    """Takes from `slot` its cells after the first `num_tokens`; 0 frees it."""

    slot: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Step:
    """What to do with the cache, in this order, and then to compute."""

    moves: list[Copy | Cut]
    works: list[Work]
    preempted: list[Sequence] = field(default_factory=list)
