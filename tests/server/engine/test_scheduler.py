from __future__ import annotations

import random

from nlocalmodels_server.engine.sampling import SamplingParams
from nlocalmodels_server.engine.scheduler import Limits, Scheduler, Work
from nlocalmodels_server.engine.sequence import Sequence
from nlocalmodels_server.engine.text import TextStream

LIMITS = Limits(num_slots=4, num_cells=400, num_batch_tokens=64, num_prefill_tokens=16, num_headroom_tokens=8)


def new_sequence(request_id: int, num_prompt_tokens: int, max_new_tokens: int = 8) -> Sequence:
    return Sequence(request_id, [1] * num_prompt_tokens, max_new_tokens, SamplingParams(), TextStream([]))


def compute(works: list[Work]) -> None:
    """Does what the engine does after a step."""
    for work in works:
        yields = work.yields_token
        work.sequence.num_computed += work.num_tokens
        if yields:
            work.sequence.tokens.append(2)


def shares(works: list[Work]) -> dict[int, int]:
    return {work.sequence.request_id: work.num_tokens for work in works}


def test_schedule_computes_prompts_in_order_of_arrival() -> None:
    scheduler = Scheduler(LIMITS)
    for number, length in enumerate((50, 40)):
        scheduler.add(new_sequence(number, length))
    works, _ = scheduler.schedule()
    assert shares(works) == {0: 50, 1: 14}


def test_schedule_bounds_prompts_while_others_decode() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add(new_sequence(0, 10))
    compute(scheduler.schedule()[0])
    scheduler.add(new_sequence(1, 100))
    works, _ = scheduler.schedule()
    assert shares(works) == {0: 1, 1: 16}


def test_schedule_admits_no_more_than_there_are_slots() -> None:
    scheduler = Scheduler(LIMITS)
    for number in range(6):
        scheduler.add(new_sequence(number, 2))
    works, _ = scheduler.schedule()
    assert len(works) == LIMITS.num_slots
    assert len({work.sequence.slot for work in works}) == LIMITS.num_slots
    assert len(scheduler.waiting) == 2


def test_schedule_lets_a_long_prompt_wait_for_cells() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add(new_sequence(0, 300))
    scheduler.add(new_sequence(1, 200))
    scheduler.schedule()
    assert [sequence.request_id for sequence in scheduler.running] == [0]


def test_schedule_admits_a_prompt_that_fills_the_cells_when_it_is_alone() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add(new_sequence(0, LIMITS.num_cells - 1))
    works, _ = scheduler.schedule()
    assert shares(works) == {0: 64}


def test_schedule_preempts_the_youngest_when_cells_run_out() -> None:
    scheduler = Scheduler(Limits(num_slots=4, num_cells=60, num_batch_tokens=64, num_prefill_tokens=64, num_headroom_tokens=1))
    old, young = new_sequence(0, 25, 60), new_sequence(1, 25, 60)
    scheduler.add(old)
    scheduler.add(young)
    preempted: list[Sequence] = []
    while not preempted:
        works, preempted = scheduler.schedule()
        compute(works)
    assert preempted == [young]
    assert young.slot is not None
    scheduler.forget_slot(young)
    assert young.num_computed == 0
    assert scheduler.waiting[0] is young
    assert scheduler.running == [old]


def test_remove_gives_the_slot_back() -> None:
    scheduler = Scheduler(LIMITS)
    sequences = [new_sequence(number, 2) for number in range(5)]
    for sequence in sequences:
        scheduler.add(sequence)
    scheduler.schedule()
    scheduler.remove(sequences[1])
    scheduler.schedule()
    assert sequences[4] in scheduler.running


def test_every_sequence_ends_and_cells_never_overflow() -> None:
    """A history of arrivals, ends and cancellations, on a pool far too small for all."""
    rng = random.Random(7)
    scheduler = Scheduler(LIMITS)
    to_come = [new_sequence(number, rng.randint(1, 150), rng.randint(1, 120)) for number in range(60)]
    done = 0
    for _ in range(20_000):
        if to_come and rng.random() < 0.2:
            scheduler.add(to_come.pop())
        works, preempted = scheduler.schedule()
        for sequence in preempted:
            scheduler.forget_slot(sequence)
        assert sum(work.num_tokens for work in works) <= LIMITS.num_batch_tokens
        compute(works)
        assert scheduler.num_used_cells <= LIMITS.num_cells
        for sequence in [s for s in scheduler.running if s.num_new_tokens >= s.max_new_tokens or rng.random() < 0.001]:
            scheduler.remove(sequence)
            done += 1
        if done == 60:
            return
    raise AssertionError(f"only {done} of 60 sequences ended")
