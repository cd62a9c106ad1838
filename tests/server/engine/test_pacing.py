from __future__ import annotations

import random

import pytest

from nlocalmodels_server.engine.pacing import StepCosts


def cpu_seconds(num_rows: int) -> float:
    """About what gemma-3-270m takes on two cores."""
    return 0.010 + 0.0045 * min(num_rows, 16) + 0.0018 * max(0, num_rows - 16)


def test_costs_are_learnt_from_what_is_run() -> None:
    costs = StepCosts()
    for num_rows in (1, 4, 8, 16, 70, 130, 256):
        for _ in range(5):
            costs.record(num_rows, cpu_seconds(num_rows))
    for num_rows in (1, 4, 8, 16, 70, 130, 256):
        assert costs.seconds(num_rows) == pytest.approx(cpu_seconds(num_rows), rel=0.25)


def test_chunks_settle_where_a_step_takes_what_it_may() -> None:
    """From any start, on a machine that is noisy and ten times slower or faster than expected."""
    rng = random.Random(2)
    for speed in (0.1, 1.0, 10.0):
        costs = StepCosts()
        for _ in range(60):
            num_rows = 6 + costs.chunk_tokens(6, 0.2)
            costs.record(num_rows, speed * cpu_seconds(num_rows) * rng.uniform(0.9, 1.2))
        seconds = speed * cpu_seconds(6 + costs.chunk_tokens(6, 0.2))
        smallest = costs.chunk_tokens(6, 0.0)
        assert seconds < 0.25 or costs.chunk_tokens(6, 0.2) == smallest
        assert seconds > 0.12 or speed == 0.1


def test_a_chunk_is_never_nothing() -> None:
    costs = StepCosts()
    for _ in range(5):
        costs.record(1, 9.0)
    assert costs.chunk_tokens(1, 0.2) == 16


def test_a_hiccup_of_the_machine_is_forgotten() -> None:
    costs = StepCosts()
    for _ in range(20):
        num_rows = 6 + costs.chunk_tokens(6, 0.2)
        costs.record(num_rows, cpu_seconds(num_rows))
    before = costs.chunk_tokens(6, 0.2)
    costs.record(6 + before, 5.0)
    for _ in range(20):
        num_rows = 6 + costs.chunk_tokens(6, 0.2)
        costs.record(num_rows, cpu_seconds(num_rows))
    assert costs.chunk_tokens(6, 0.2) == pytest.approx(before, abs=16)


def test_more_rows_never_take_less_time() -> None:
    rng = random.Random(4)
    costs = StepCosts()
    for _ in range(200):
        costs.record(rng.randint(1, 512), rng.uniform(0.001, 1.0))
        times = [costs.seconds(num_rows) for num_rows in range(1, 600, 7)]
        assert all(times)
        assert times == sorted(times)
