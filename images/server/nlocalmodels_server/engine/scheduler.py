"""The engine's policy: what the next step computes, for whom, and whose cells make way. Pure: no clock, thread or llama.cpp.

- First come, first served, over slots and cache cells; a prompt begins after the longest prefix that any sequence holds.
- A prompt that shares more with one that is being computed waits for it instead of computing the same.
- A step has one token of each decoding sequence, and prompt tokens for as long as the step stays within its time. Where a pass
  over the weights is cheap, the two are steps of their own, in turn.
- The oldest prompt gets half of these at least, the rest go to the prompts that are nearest to their end.
- Without prompts, sequences that repeat what they have said get guessed tokens along, where that makes the step worth more.
- What has ended keeps its cells for those who come with the same beginning, until they are needed: least recently used first.
- When all cells belong to running sequences, the youngest gives up its own and is computed again later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from nlocalmodels_server.engine.pacing import StepCosts
from nlocalmodels_server.engine.prefix_tree import Match, PrefixTree, common_length
from nlocalmodels_server.engine.prompt_lookup import MAX_DRAFT_TOKENS, best_length
from nlocalmodels_server.engine.sequence import Sequence
from nlocalmodels_server.engine.step import Copy, Cut, Limits, Step, Work

# Shorter prefixes are not worth a copy, nor is waiting for one.
_MIN_SHARED_TOKENS = 8
_MIN_AWAITED_TOKENS = 32
_CHEAP_PASS = 0.1


class Scheduler:
    """Holds who waits and who runs, and the tree of what the cache holds.

    Args:
        can_share: whether a slot's first tokens can be given to another now. A cache that keeps a sliding window only
            may have lost some.
    """

    def __init__(
        self, limits: Limits, costs: StepCosts | None = None, can_share: Callable[[int, int], bool] = lambda *_: True
    ) -> None:
        self._limits = limits
        self._costs = costs or StepCosts()
        self._can_share = can_share
        self._free_slots = list(range(limits.num_slots + limits.num_kept))
        self._tree = PrefixTree()
        # Slots of ended sequences, least recently used first.
        self._kept: dict[int, None] = {}
        self._moves: list[Copy | Cut] = []
        # For a waiting sequence, the one it waits for and how many tokens of it.
        self._awaited: dict[Sequence, tuple[Sequence, int]] = {}
        self._are_prompts_next = False
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def num_used_cells(self) -> int:
        return self._tree.num_cells

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def schedule(self) -> Step:
        """Returns the next step. `advance` must follow for each of its works, with what came of it."""
        preempted = self._preempt()
        self._admit()
        decoding = [sequence for sequence in self.running if sequence.is_decoding]
        works = [Work(sequence, 1) for sequence in decoding]
        num_rows = min(self._limits.num_batch_tokens, self._limits.num_cells - self._tree.num_live_cells) - len(works)
        prompts = [sequence for sequence in self.running if not sequence.is_decoding]
        if not prompts:
            works = self._guess(works, num_rows)
        elif not decoding or not self._is_apart:
            works += self._prompt_works(prompts, len(decoding), num_rows)
        elif self._are_prompts_next:
            works = self._prompt_works(prompts, len(decoding), num_rows)
        # Together, prompts and streams would have cells between each other's, and attention could skip neither's.
        self._are_prompts_next = bool(prompts and decoding) and self._is_apart and not self._are_prompts_next
        self._make_room(sum(work.num_rows for work in works))
        moves, self._moves = self._moves, []
        return Step(moves, works, preempted)

    @property
    def _is_apart(self) -> bool:
        """Whether prompts and decoding sequences take turns: one more pass over the weights is a small part of a step."""
        return self._costs.seconds(1) <= _CHEAP_PASS * self._limits.max_step_seconds

    def advance(self, sequence: Sequence, num_tokens: int) -> None:
        """Takes in that so many of a running sequence's next tokens are in the cache now."""
        assert sequence.slot is not None
        first = sequence.num_computed
        self._tree.extend(sequence.slot, sequence.tokens[first : first + num_tokens])
        sequence.num_computed += num_tokens

    def remove(self, sequence: Sequence) -> None:
        """Takes a finished or cancelled sequence out. Its cells are kept for the sake of others."""
        if sequence.slot is None:
            self.waiting.remove(sequence)
            self._awaited.pop(sequence, None)
        else:
            self.running.remove(sequence)
            self._leave(sequence)

    def discard(self, sequence: Sequence) -> None:
        """Takes out a running sequence whose cells are not to be trusted, along with them."""
        slot = sequence.slot
        assert slot is not None
        self.remove(sequence)
        if slot in self._kept:
            self._drop(slot)

    @property
    def has_kept(self) -> bool:
        return bool(self._kept)

    def drop_kept(self) -> None:
        """Frees all cells that no running sequence holds."""
        for slot in list(self._kept):
            self._drop(slot)

    def preempt_youngest(self) -> Sequence | None:
        """Puts the sequence that was admitted last back to the head of the queue; None if it runs alone."""
        if len(self.running) < 2:
            return None
        sequence = self.running.pop()
        self._leave(sequence)
        sequence.num_computed = 0
        self.waiting.appendleft(sequence)
        return sequence

    def _admit(self) -> None:
        if not self.waiting:
            return
        promised = sum(sequence.num_uncomputed + 1 for sequence in self.running)
        for sequence in list(self.waiting):
            if len(self.running) >= self._limits.num_slots:
                return
            if self._must_wait(sequence):
                continue
            prefix = self._prefix(sequence)
            if self._finds_leader(sequence, prefix):
                continue
            num_shared = prefix.num_tokens if prefix else 0
            needed = len(sequence.tokens) - num_shared + self._limits.num_headroom_tokens
            live = self._tree.num_live_cells + (self._tree.num_kept_cells(prefix) if prefix else 0)
            if self.running and live + promised + needed > self._limits.num_cells:
                return
            self.waiting.remove(sequence)
            self._start(sequence, prefix)
            promised += sequence.num_uncomputed + 1

    def _prefix(self, sequence: Sequence) -> Match | None:
        """Returns what the cache has of a sequence, but for its last token, which is computed to yield the next one."""
        found = self._tree.match(sequence.tokens[:-1])
        if found is None or found.num_tokens < _MIN_SHARED_TOKENS:
            return None
        if not self._limits.shares_partially and self._tree.length(found.slot) != found.num_tokens:
            return None
        return found if self._can_share(found.slot, found.num_tokens) else None

    def _must_wait(self, sequence: Sequence) -> bool:
        leader, num_tokens = self._awaited.get(sequence, (None, 0))
        if leader is None:
            return False
        if leader.slot is not None and leader.num_computed < num_tokens:
            return True
        del self._awaited[sequence]
        return False

    def _finds_leader(self, sequence: Sequence, prefix: Match | None) -> bool:
        """Looks for a prompt under way that will hold more of this one than there is now, and makes it wait for that."""
        if not self._limits.shares_partially:
            return False
        wanted = (prefix.num_tokens if prefix else 0) + _MIN_AWAITED_TOKENS
        start = sequence.tokens[:wanted]
        for leader in self.running:
            if leader.is_decoding or leader.tokens[:wanted] != start:
                continue
            num_common = min(common_length(leader.tokens, sequence.tokens), len(sequence.tokens) - 1, len(leader.tokens) - 1)
            # What it has computed and yet cannot share is not worth waiting for.
            if num_common >= wanted and num_common > leader.num_computed:
                self._awaited[sequence] = leader, num_common
                return True
        return False

    def _start(self, sequence: Sequence, prefix: Match | None) -> None:
        sequence.num_computed = prefix.num_tokens if prefix else 0
        if sequence.num_reused is None:
            sequence.num_reused = sequence.num_computed
        if prefix is None:
            sequence.slot = self._take_slot(None)
            self._tree.open(sequence.slot)
        elif prefix.slot in self._kept and self._is_taken_over(prefix):
            sequence.slot = prefix.slot
            del self._kept[prefix.slot]
            if self._tree.length(prefix.slot) > prefix.num_tokens:
                self._moves.append(Cut(prefix.slot, prefix.num_tokens))
            self._tree.reopen(prefix.slot, prefix.num_tokens)
        else:
            if prefix.slot in self._kept:
                self._kept[prefix.slot] = self._kept.pop(prefix.slot)
            sequence.slot = self._take_slot(prefix.slot)
            self._tree.open(sequence.slot, prefix)
            self._moves.append(Copy(prefix.slot, sequence.slot, prefix.num_tokens))
        self.running.append(sequence)

    def _is_taken_over(self, prefix: Match) -> bool:
        """Whether a kept sequence is continued in its own slot: if it is used whole, or no other slot can be had."""
        if self._tree.length(prefix.slot) == prefix.num_tokens:
            return True
        return not self._free_slots and len(self._kept) == 1

    def _take_slot(self, needed: int | None) -> int:
        """Returns a slot without cells, other than `needed`."""
        if not self._free_slots:
            self._drop(next(slot for slot in self._kept if slot != needed))
        return self._free_slots.pop(0)

    def _leave(self, sequence: Sequence) -> None:
        slot = sequence.slot
        assert slot is not None
        sequence.slot = None
        self._tree.keep(slot)
        self._kept[slot] = None
        # Attention passes over all cells in use, so those of short texts cost more than computing them again would.
        if self._tree.num_own_cells(slot) < self._limits.num_worthwhile_cells:
            self._drop(slot)
        # 4,096 make a step of gemma-3-270m a tenth longer. The last one stays however long: its next turn may come.
        while len(self._kept) > 1 and self._tree.num_cells - self._tree.num_live_cells > self._limits.num_kept_cells:
            self._drop(next(iter(self._kept)))

    def _drop(self, slot: int) -> None:
        self._tree.drop(slot)
        del self._kept[slot]
        self._free_slots.append(slot)
        self._moves.append(Cut(slot, 0))

    def _make_room(self, num_rows: int) -> None:
        while self._kept and self._tree.num_cells + num_rows > self._limits.num_cells:
            self._drop(next(iter(self._kept)))

    def _preempt(self) -> list[Sequence]:
        """Preempts until each running sequence can compute at least one token more."""
        preempted = []
        while self._tree.num_live_cells + len(self.running) > self._limits.num_cells:
            sequence = self.preempt_youngest()
            if sequence is None:
                break
            preempted.append(sequence)
        return preempted

    def _prompt_works(self, prompts: list[Sequence], num_decoding: int, num_rows: int) -> list[Work]:
        seconds = self._limits.max_step_seconds if num_decoding else self._limits.max_prefill_seconds
        budget = min(num_rows, self._costs.chunk_tokens(num_decoding, seconds))
        if budget <= 0:
            return []
        shares = {prompts[0]: min(prompts[0].num_uncomputed, -(-budget // 2))}
        left = budget - shares[prompts[0]]
        for sequence in sorted(prompts[1:], key=lambda sequence: sequence.num_uncomputed):
            shares[sequence] = min(left, sequence.num_uncomputed)
            left -= shares[sequence]
        shares[prompts[0]] += min(left, prompts[0].num_uncomputed - shares[prompts[0]])
        return [Work(sequence, num_tokens) for sequence, num_tokens in shares.items() if num_tokens]

    def _guess(self, works: list[Work], num_rows: int) -> list[Work]:
        """Adds guesses to the sequences that are best at guessing, while each makes the step worth more."""
        if not self._limits.shares_partially:
            return works
        room = min(num_rows, self._limits.num_output_rows - len(works))
        num_step_rows, num_expected = len(works), float(len(works))
        guessed = {}
        for work in sorted(works, key=lambda work: work.sequence.lookup.rate, reverse=True):
            sequence = work.sequence
            most = min(room, MAX_DRAFT_TOKENS, sequence.max_new_tokens - sequence.num_new_tokens - 1)
            length, gain = best_length(sequence.lookup.rate, most, num_step_rows, num_expected, self._costs.seconds)
            # Also where none pays: the first guess is compared with what comes, to see whether guessing would.
            draft = sequence.lookup.guess(sequence.tokens, max(1, length))
            sequence.lookup.expect(draft)
            if length and draft:
                guessed[sequence] = tuple(draft)
                room -= len(draft)
                num_step_rows += len(draft)
                num_expected += gain
        return [Work(work.sequence, work.num_tokens, guessed.get(work.sequence, ())) for work in works]
