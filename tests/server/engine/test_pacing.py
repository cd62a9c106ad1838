from __future__ import annotations

import random

import pytest

from nlocalmodels_server.engine.pacing import StepCosts


def decode_seconds(num_rows: int) -> float:
    """About what gemma-3-270m takes on two cores."""
    return 0.011 + 0.0025 * num_rows


def mixed_seconds(num_decoding: int, num_prompt_tokens: int) -> float:
    return decode_seconds(num_decoding) + 0.0015 * num_prompt_tokens


def test_costs_are_learnt_from_what_is_run() -> None:
    costs = StepCosts()
    for num_rows in (1, 4, 8, 16, 32):
        for _ in range(5):
            costs.record(num_rows, 0, decode_seconds(num_rows))
    for num_rows in (1, 4, 8, 12, 16, 32):
        assert costs.seconds(num_rows) == pytest.approx(decode_seconds(num_rows), rel=0.2)


def test_prompts_do_not_change_what_decoding_is_thought_to_cost() -> None:
    costs = StepCosts()
    for _ in range(10):
        costs.record(6, 0, decode_seconds(6))
    before = costs.seconds(6)
    for _ in range(10):
        costs.record(7, 250, 3.0)
    assert costs.seconds(6) == before


def test_chunks_settle_where_a_step_takes_what_it_may() -> None:
    """From the start, on a machine that is noisy and ten times slower or faster than this one."""
    rng = random.Random(2)
    for speed in (0.1, 1.0, 10.0):
        costs = StepCosts()
        for _ in range(60):
            costs.record(6, 0, speed * decode_seconds(6) * rng.uniform(0.9, 1.2))
            num_tokens = min(costs.chunk_tokens(6, 0.2), 256)
            costs.record(6, num_tokens, speed * mixed_seconds(6, num_tokens) * rng.uniform(0.9, 1.2))
        num_tokens = costs.chunk_tokens(6, 0.2)
        if speed == 10.0:
            # Decoding alone takes longer than a step may.
            assert num_tokens == 16
        else:
            assert speed * mixed_seconds(6, num_tokens) == pytest.approx(0.2, rel=0.25)


def test_a_chunk_is_never_nothing() -> None:
    costs = StepCosts()
    for _ in range(5):
        costs.record(1, 0, 9.0)
    assert costs.chunk_tokens(1, 0.2) == 16


def test_a_hiccup_of_the_machine_is_forgotten() -> None:
    costs = StepCosts()

    def run(num_steps: int) -> int:
        for _ in range(num_steps):
            costs.record(6, 0, decode_seconds(6))
            num_tokens = costs.chunk_tokens(6, 0.2)
            costs.record(6, num_tokens, mixed_seconds(6, num_tokens))
        return costs.chunk_tokens(6, 0.2)

    before = run(20)
    costs.record(6, before, 5.0)
    costs.record(6, 0, 5.0)
    assert costs.chunk_tokens(6, 0.2) >= before / 3
    assert run(20) == pytest.approx(before, abs=16)


def test_a_few_tokens_do_not_tell_what_a_chunk_costs() -> None:
    costs = StepCosts()
    for _ in range(10):
        costs.record(0, 128, 0.2)
    before = costs.chunk_tokens(0, 0.2)
    costs.record(1, 3, 0.1)
    assert costs.chunk_tokens(0, 0.2) == before


def test_more_rows_never_take_less_time() -> None:
    rng = random.Random(4)
    costs = StepCosts()
    for _ in range(200):
        costs.record(rng.randint(1, 48), rng.choice([0, 0, 100]), rng.uniform(0.001, 1.0))
        times = [costs.seconds(num_rows) for num_rows in range(1, 600, 7)]
        assert all(times)
        assert times == sorted(times)


@pytest.mark.parametrize(
    ("affordable", "chosen"),
    [(32, 32), (48, 48), (80, 80), (96, 96), (112, 128), (128, 128), (160, 128), (176, 192), (240, 256)],
)
def test_chunks_fill_tiles_of_64_rows(affordable: int, chosen: int) -> None:
    costs = StepCosts()
    for _ in range(50):
        costs.record(0, 100, 0.2)
    assert costs.chunk_tokens(0, affordable * 0.002) == chosen
