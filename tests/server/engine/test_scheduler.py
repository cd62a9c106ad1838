from __future__ import annotations

import random
from dataclasses import replace

import pytest

from nlocalmodels_server.engine.pacing import StepCosts
from nlocalmodels_server.engine.sampling import SamplingParams
from nlocalmodels_server.engine.scheduler import Scheduler
from nlocalmodels_server.engine.sequence import Sequence
from nlocalmodels_server.engine.step import Copy, Cut, Limits, Step, Work
from nlocalmodels_server.engine.text import TextStream

LIMITS = Limits(
    num_slots=4,
    num_cells=400,
    num_batch_tokens=64,
    num_output_rows=8,
    num_kept=2,
    num_headroom_tokens=8,
    num_worthwhile_cells=8,
)


class SlowPrompts(StepCosts):
    """Costs by which 32 prompt tokens fit into a step with decoding sequences, and any number into one without."""

    def chunk_tokens(self, num_decoding: int, max_seconds: float) -> int:
        return 32 if num_decoding else 512


class Cache:
    """What llama.cpp's unified cache would hold, cell by cell: each slot is a list of cells, and cells may be shared."""

    def __init__(self, num_cells: int) -> None:
        self.num_cells = num_cells
        self.slots: dict[int, list[tuple[int, int]]] = {}
        self._next_cell = 0

    def move(self, moves: list[Copy | Cut]) -> None:
        for move in moves:
            if isinstance(move, Copy):
                assert not self.slots.get(move.slot), "a slot with cells was given another's"
                self.slots[move.slot] = self.slots[move.source][: move.num_tokens]
                assert len(self.slots[move.slot]) == move.num_tokens, "the source has lost its cells"
            else:
                self.slots[move.slot] = self.slots.get(move.slot, [])[: move.num_tokens]

    def compute(self, work: Work) -> None:
        sequence = work.sequence
        assert sequence.slot is not None
        cells = self.slots.setdefault(sequence.slot, [])
        assert [token for _, token in cells] == sequence.tokens[: sequence.num_computed]
        for token in (
            *sequence.tokens[sequence.num_computed : sequence.num_computed + work.num_tokens],
            *work.draft,
        ):
            cells.append((self._next_cell, token))
            self._next_cell += 1
        assert self.num_used <= self.num_cells

    @property
    def num_used(self) -> int:
        return len({cell for cells in self.slots.values() for cell in cells})


def new_sequence(request_id: int, prompt: int | list[int], max_new_tokens: int = 8) -> Sequence:
    """Makes a sequence of a prompt, or of a length, then with a prompt that is like no other's."""
    tokens = [1000 * (request_id + 1) + number for number in range(prompt)] if isinstance(prompt, int) else list(prompt)
    return Sequence(request_id, tokens, max_new_tokens, SamplingParams(), TextStream([]))


def compute(scheduler: Scheduler, step: Step, cache: Cache | None = None, next_token: int = 7) -> None:
    """Does what the engine does with a step, where every guess is wrong."""
    if cache is not None:
        cache.move(step.moves)
    for work in step.works:
        if cache is not None:
            cache.compute(work)
        if work.yields_token:
            work.sequence.tokens.append(next_token)
        scheduler.advance(work.sequence, work.num_tokens)
        if cache is not None and work.draft:
            assert work.sequence.slot is not None
            cache.move([Cut(work.sequence.slot, work.sequence.num_computed)])


def shares(step: Step) -> dict[int, int]:
    return {work.sequence.request_id: work.num_tokens for work in step.works}


def scheduler_of(*sequences: Sequence, limits: Limits = LIMITS) -> Scheduler:
    scheduler = Scheduler(limits, SlowPrompts())
    for sequence in sequences:
        scheduler.add(sequence)
    return scheduler


def finish(scheduler: Scheduler, sequence: Sequence) -> None:
    while sequence.num_new_tokens < sequence.max_new_tokens:
        compute(scheduler, scheduler.schedule())
    scheduler.remove(sequence)


def test_the_oldest_prompt_gets_half_of_a_step_and_the_nearest_to_its_end_the_rest() -> None:
    scheduler = scheduler_of(new_sequence(0, 200), new_sequence(1, 100), new_sequence(2, 20))
    assert shares(scheduler.schedule()) == {0: 32, 2: 20, 1: 12}


def test_a_prompt_alone_gets_all_of_a_step() -> None:
    assert shares(scheduler_of(new_sequence(0, 200)).schedule()) == {0: 64}


def test_decoding_sequences_are_in_every_step_and_bound_its_prompts() -> None:
    scheduler = scheduler_of(new_sequence(0, 10))
    compute(scheduler, scheduler.schedule())
    scheduler.add(new_sequence(1, 100))
    assert shares(scheduler.schedule()) == {0: 1, 1: 32}


def test_prompts_and_streams_take_turns_where_a_pass_over_the_weights_is_cheap() -> None:
    costs = SlowPrompts()
    costs.record(1, 0, 0.012)
    scheduler = Scheduler(LIMITS, costs)
    scheduler.add(new_sequence(0, 10))
    compute(scheduler, scheduler.schedule())
    scheduler.add(new_sequence(1, 70))
    steps = []
    for _ in range(6):
        step = scheduler.schedule()
        steps.append(shares(step))
        compute(scheduler, step)
    assert steps == [{0: 1}, {1: 32}, {0: 1}, {1: 32}, {0: 1}, {1: 6}]
    assert shares(scheduler.schedule()) == {0: 1, 1: 1}


def test_no_more_sequences_run_than_there_are_slots() -> None:
    scheduler = scheduler_of(*(new_sequence(number, 2) for number in range(6)))
    step = scheduler.schedule()
    assert len(step.works) == len({work.sequence.slot for work in step.works}) == LIMITS.num_slots
    assert len(scheduler.waiting) == 2


def test_a_long_prompt_waits_for_cells() -> None:
    scheduler = scheduler_of(new_sequence(0, 300), new_sequence(1, 200))
    scheduler.schedule()
    assert [sequence.request_id for sequence in scheduler.running] == [0]


def test_a_prompt_that_fills_the_cells_runs_alone() -> None:
    scheduler = scheduler_of(new_sequence(0, LIMITS.num_cells - 1))
    assert shares(scheduler.schedule()) == {0: 64}


def test_a_prompt_begins_after_what_a_running_sequence_holds() -> None:
    prefix = list(range(50))
    busy = new_sequence(0, [*prefix, 91, 92])
    scheduler = scheduler_of(busy)
    compute(scheduler, scheduler.schedule())
    follower = new_sequence(1, [*prefix, 81, 82, 83])
    scheduler.add(follower)
    step = scheduler.schedule()
    assert busy.slot is not None
    assert follower.slot is not None
    assert step.moves == [Copy(busy.slot, follower.slot, 50)]
    assert shares(step) == {0: 1, 1: 3}
    assert follower.num_reused == 50
    # The shared cells are there once.
    compute(scheduler, step)
    assert scheduler.num_used_cells == 50 + 3 + 3


def test_a_prompt_that_is_held_whole_computes_its_last_token() -> None:
    prompt = list(range(40))
    first = new_sequence(0, prompt)
    scheduler = scheduler_of(first)
    compute(scheduler, scheduler.schedule())
    scheduler.add(new_sequence(1, prompt))
    assert shares(scheduler.schedule()) == {0: 1, 1: 1}


def test_prompts_that_come_together_compute_what_they_share_once() -> None:
    prefix = list(range(60))
    sequences = [new_sequence(number, [*prefix, 100 + number, 200 + number]) for number in range(4)]
    scheduler = scheduler_of(*sequences)
    total = 0
    for _ in range(3):
        step = scheduler.schedule()
        total += sum(work.num_tokens for work in step.works if not work.sequence.num_new_tokens)
        compute(scheduler, step)
    assert all(sequence.num_new_tokens for sequence in sequences)
    assert total == 60 + 4 * 2


def test_who_waits_for_a_prompt_goes_on_with_what_there_is_when_that_is_cancelled() -> None:
    prefix = list(range(150))
    leader, follower = (new_sequence(number, [*prefix, 900 + number]) for number in range(2))
    scheduler = scheduler_of(leader, follower)
    compute(scheduler, scheduler.schedule())
    assert follower.slot is None
    scheduler.remove(leader)
    step = scheduler.schedule()
    assert follower.num_reused == 64
    # It continues in the very slot of the one that has gone.
    assert step.moves == []
    assert shares(step) == {1: 64}


def test_other_prompts_pass_by_one_that_waits_for_its_prefix() -> None:
    prefix = list(range(150))
    scheduler = scheduler_of(new_sequence(0, [*prefix, 1]), new_sequence(1, [*prefix, 2]), new_sequence(2, 10))
    assert set(shares(scheduler.schedule())) == {0, 2}


def test_an_ended_sequence_is_continued_without_computing_it_again() -> None:
    first = new_sequence(0, list(range(30)))
    scheduler = scheduler_of(first)
    finish(scheduler, first)
    # All but its last token, which was never computed.
    second = new_sequence(1, [*first.tokens, 55, 56])
    scheduler.add(second)
    assert shares(scheduler.schedule()) == {1: 3}
    assert second.num_reused == 37


def test_a_short_text_is_not_kept() -> None:
    first = new_sequence(0, list(range(10)), max_new_tokens=1)
    scheduler = scheduler_of(first, limits=replace(LIMITS, num_worthwhile_cells=11))
    finish(scheduler, first)
    assert scheduler.num_used_cells == 0


def test_kept_sequences_make_way_least_recently_used_first() -> None:
    scheduler = scheduler_of()
    prompts = [list(range(1000 * number, 1000 * number + 100)) for number in range(3)]
    for number, prompt in enumerate(prompts):
        sequence = new_sequence(number, prompt, max_new_tokens=1)
        scheduler.add(sequence)
        finish(scheduler, sequence)
    again = new_sequence(10, [*prompts[0], 5], max_new_tokens=1)
    scheduler.add(again)
    finish(scheduler, again)
    big = new_sequence(11, 150, max_new_tokens=1)
    scheduler.add(big)
    finish(scheduler, big)
    reused = {}
    for number in (0, 2, 1):
        scheduler.add(probe := new_sequence(20 + number, [*prompts[number], 6], max_new_tokens=1))
        scheduler.schedule()
        reused[number] = probe.num_reused
        scheduler.remove(probe)
    assert reused == {0: 100, 2: 100, 1: 0}


def test_few_cells_are_kept_but_the_last_sequence_however_long() -> None:
    scheduler = scheduler_of(limits=replace(LIMITS, num_kept_cells=100))
    for number, (num_tokens, num_kept) in enumerate([(60, 60), (30, 90), (50, 80), (150, 150), (20, 20)]):
        sequence = new_sequence(number, list(range(1000 * number, 1000 * number + num_tokens)), max_new_tokens=1)
        scheduler.add(sequence)
        finish(scheduler, sequence)
        assert scheduler.num_used_cells == num_kept


def test_the_youngest_gives_up_its_cells_when_they_run_out() -> None:
    limits = Limits(num_slots=4, num_cells=60, num_batch_tokens=64, num_output_rows=4, num_headroom_tokens=1)
    old, young = new_sequence(0, 25, 60), new_sequence(1, 25, 60)
    scheduler = scheduler_of(old, young, limits=limits)
    step = scheduler.schedule()
    while not step.preempted:
        compute(scheduler, step)
        step = scheduler.schedule()
    assert step.preempted == [young]
    assert young.num_computed == 0
    assert scheduler.waiting[0] is young
    assert scheduler.running == [old]


def test_recurrent_states_are_taken_whole_or_not_at_all() -> None:
    limits = Limits(
        num_slots=2, num_cells=400, num_batch_tokens=64, num_output_rows=2, shares_partially=False, num_worthwhile_cells=8
    )
    first = new_sequence(0, list(range(30)))
    scheduler = scheduler_of(first, limits=limits)
    finish(scheduler, first)
    branch = new_sequence(1, [*range(20), 500, 501])
    scheduler.add(branch)
    assert shares(scheduler.schedule()) == {1: 22}
    continued = new_sequence(2, [*first.tokens, 55])
    scheduler.add(continued)
    step = scheduler.schedule()
    assert continued.num_reused == 37
    assert not any(isinstance(move, Cut) and move.num_tokens for move in step.moves)


def test_what_a_sliding_window_has_lost_is_not_shared() -> None:
    first = new_sequence(0, list(range(50)))
    scheduler = Scheduler(LIMITS, SlowPrompts(), can_share=lambda *_: False)
    scheduler.add(first)
    compute(scheduler, scheduler.schedule())
    scheduler.add(new_sequence(1, [*range(50), 5]))
    assert shares(scheduler.schedule()) == {0: 1, 1: 32}


def test_a_text_that_repeats_itself_gets_guesses_and_another_does_not() -> None:
    costs = StepCosts()
    scheduler = Scheduler(LIMITS, costs)
    copying = new_sequence(0, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 1, 2, 3], 40)
    telling = new_sequence(1, 12, 40)
    scheduler.add(copying)
    scheduler.add(telling)
    drafts: dict[int, list[int]] = {0: [], 1: []}
    for number in range(12):
        step = scheduler.schedule()
        for work in step.works:
            drafts[work.sequence.request_id].append(len(work.draft))
            sequence = work.sequence
            first_new = len(sequence.tokens)
            if sequence is copying:
                sequence.tokens += [1 + (first_new + offset) % 12 for offset in range(1 + len(work.draft))]
                expected = sequence.tokens[first_new : first_new + len(work.draft)]
                assert list(work.draft) == expected
            else:
                sequence.tokens.append(5000 + number)
            scheduler.advance(sequence, work.num_rows)
            sequence.lookup.compare(sequence.tokens[first_new:])
        if copying.num_new_tokens >= 30:
            break
    assert max(drafts[0]) >= 3
    assert max(drafts[1]) == 0


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shares_partially", [True, False], ids=["trim", "recurrent"])
def test_every_sequence_ends_and_cells_are_as_told(seed: int, shares_partially: bool) -> None:
    """A history of arrivals with shared beginnings, ends and cancellations, on a pool far too small for all."""
    rng = random.Random(seed)
    limits = Limits(
        num_slots=4,
        num_cells=400,
        num_batch_tokens=64,
        num_output_rows=8,
        num_kept=rng.choice([0, 1, 6]),
        num_headroom_tokens=8,
        num_worthwhile_cells=rng.choice([1, 8]),
        num_kept_cells=rng.choice([1, 100, 4096]),
        shares_partially=shares_partially,
    )
    scheduler, cache = Scheduler(limits, SlowPrompts()), Cache(limits.num_cells)
    prefixes = [[rng.randrange(50) for _ in range(rng.randint(1, 150))] for _ in range(4)]

    def arrival(number: int) -> Sequence:
        prefix = rng.choice(prefixes)
        tokens = [*prefix[: rng.randint(0, len(prefix))], *(rng.randrange(50) for _ in range(rng.randint(1, 40)))]
        return new_sequence(number, tokens, rng.randint(1, 120))

    to_come = [arrival(number) for number in range(60)]
    done = 0
    for _ in range(20_000):
        if to_come and rng.random() < 0.2:
            scheduler.add(to_come.pop())
        step = scheduler.schedule()
        assert sum(work.num_rows for work in step.works) <= limits.num_batch_tokens
        assert step.works or not scheduler.has_work
        compute(scheduler, step, cache, next_token=rng.randrange(3))
        assert scheduler.num_used_cells == cache.num_used <= limits.num_cells
        ended = [
            sequence
            for sequence in [*scheduler.running, *scheduler.waiting]
            if sequence.num_new_tokens >= sequence.max_new_tokens or rng.random() < 0.001
        ]
        for sequence in ended:
            scheduler.remove(sequence)
            done += 1
        if done == 60:
            assert not scheduler.has_work
            return
    raise AssertionError(f"only {done} of 60 sequences ended")
