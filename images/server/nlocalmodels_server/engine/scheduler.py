"""What the next step computes. Pure: no clock, no thread, no llama.cpp."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from nlocalmodels_server.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Limits:
    """What one context can hold and one step may take, all in tokens but `num_slots`.

    `num_prefill_tokens` bounds the prompt tokens of a step while others decode: it is what keeps a long prompt from
    holding up running streams. `num_headroom_tokens` must stay free beyond a new sequence's prompt, or admitting it would
    only push another one out.
    """

    num_slots: int
    num_cells: int
    num_batch_tokens: int
    num_prefill_tokens: int
    num_headroom_tokens: int = 32


@dataclass(frozen=True, slots=True)
class Work:
    """The next `num_tokens` uncomputed tokens of a sequence. If they are its last, the step yields its next token."""

    sequence: Sequence
    num_tokens: int

    @property
    def yields_token(self) -> bool:
        return self.num_tokens == self.sequence.num_uncomputed


class Scheduler:
    """First come, first served, over sequence slots and cache cells.

    A step computes one token for each decoding sequence, then prompt tokens of the others in order of arrival. When the
    cells run out, the youngest sequence is preempted: it gives up its cells and computes its tokens again later.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._free_slots = list(range(limits.num_slots))
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def num_used_cells(self) -> int:
        return sum(sequence.num_computed for sequence in self.running)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Takes a finished or cancelled sequence out. Its slot's cells must be freed by the caller."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._release(sequence)
        else:
            self.waiting.remove(sequence)

    def schedule(self) -> tuple[list[Work], list[Sequence]]:
        """Returns the work of the next step and the sequences preempted for it, whose slots' cells the caller frees."""
        preempted = self._make_room()
        self._admit()
        decoding = [sequence for sequence in self.running if sequence.is_decoding]
        works = [Work(sequence, 1) for sequence in decoding]
        budget = self._limits.num_batch_tokens - len(works)
        if decoding:
            budget = min(budget, self._limits.num_prefill_tokens)
        budget = min(budget, self._limits.num_cells - self.num_used_cells - len(works))
        for sequence in self.running:
            if budget <= 0:
                break
            if not sequence.is_decoding:
                num_tokens = min(budget, sequence.num_uncomputed)
                works.append(Work(sequence, num_tokens))
                budget -= num_tokens
        return works, preempted

    def preempt_youngest(self) -> Sequence | None:
        """Puts the last admitted sequence back to the head of the queue; None if it runs alone.

        Its slot is still set, so that the caller can free the cells; `forget_slot` must follow.
        """
        if len(self.running) < 2:
            return None
        sequence = self.running.pop()
        self.waiting.appendleft(sequence)
        return sequence

    def forget_slot(self, sequence: Sequence) -> None:
        """Ends a preemption, after the cells are free."""
        self._release(sequence)
        sequence.num_computed = 0

    def _release(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        self._free_slots.append(sequence.slot)
        sequence.slot = None

    def _make_room(self) -> list[Sequence]:
        """Preempts until each running sequence can compute at least one token more."""
        preempted = []
        while self.num_used_cells + len(self.running) > self._limits.num_cells:
            sequence = self.preempt_youngest()
            if sequence is None:
                break
            preempted.append(sequence)
        return preempted

    def _admit(self) -> None:
        promised = sum(len(sequence.tokens) + 1 for sequence in self.running)
        while self.waiting and self._free_slots:
            candidate = self.waiting[0]
            if candidate.slot is not None:
                break  # just preempted: its cells are freed before the next step
            needed = len(candidate.tokens) + self._limits.num_headroom_tokens
            if self.running and promised + needed > self._limits.num_cells:
                break
            self.waiting.popleft()
            candidate.slot = self._free_slots.pop(0)
            self.running.append(candidate)
            promised += len(candidate.tokens) + 1
