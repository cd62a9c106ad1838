from __future__ import annotations

from nlocalmodels_server.engine.sizing import KV_BUDGET_BYTES, Sizes, choose_sizes


def test_choose_sizes_gives_small_models_room_for_many_requests() -> None:
    assert choose_sizes(32768, 18432, num_slots=32) == Sizes(8192, 32768)


def test_choose_sizes_gives_large_models_one_full_context() -> None:
    assert choose_sizes(4096, 524288, num_slots=32) == Sizes(4096, 4096)


def test_choose_sizes_follows_the_trained_and_the_wanted_context() -> None:
    assert choose_sizes(2048, 1024, num_slots=2).context_tokens == 2048
    assert choose_sizes(2048, 1024, num_slots=2, context_tokens=300) == Sizes(300, 768)


def test_choose_sizes_stays_within_the_budget() -> None:
    sizes = choose_sizes(8192, 65536, num_slots=32)
    assert sizes.num_cells * 65536 <= KV_BUDGET_BYTES
