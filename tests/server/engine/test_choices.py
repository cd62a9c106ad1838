from __future__ import annotations

from dataclasses import replace

from nlocalmodels_server.engine.choices import Wishes, choose
from nlocalmodels_server.engine.sizing import Sizes

WISHES = Wishes(num_threads=2, threads_reason="CPU quota of 2.5", num_slots=32)
MIB = 1024**2


def test_every_choice_has_a_reason() -> None:
    chosen = choose(WISHES, 32768, 18432, is_full_precision=False)
    assert (chosen.sizes, chosen.num_prefill_threads) == (Sizes(8192, 32768), 2)
    assert (chosen.kv_type, chosen.flash_attention) == ("f16", None)
    assert chosen.reasons == {
        "contextTokens": "by default, of 32768 trained",
        "numCells": "576 MiB of cache, for several requests",
        "numSlots": "as told",
        "numThreads": "CPU quota of 2.5",
        "numPrefillThreads": "as numThreads",
        "kvType": "half of F32",
        "flashAttention": "where llama.cpp can",
    }


def test_what_is_told_counts() -> None:
    told = replace(WISHES, context_tokens=1024, num_prefill_threads=1, kv_type="q8_0", flash_attention=True)
    chosen = choose(told, 32768, 18432, is_full_precision=False)
    assert (chosen.num_prefill_threads, chosen.kv_type, chosen.flash_attention) == (1, "q8_0", True)
    assert chosen.reasons["contextTokens"] == chosen.reasons["kvType"] == chosen.reasons["flashAttention"] == "as told"
    assert chosen.reasons["numCells"] == "306 MiB of cache, for several requests"


def test_cells_shrink_to_what_memory_leaves_but_not_below_one_context() -> None:
    short = replace(WISHES, kv_budget_bytes=300 * MIB)
    assert choose(short, 32768, 18432, is_full_precision=False).sizes == Sizes(8192, 17152)
    shorter = choose(replace(WISHES, kv_budget_bytes=MIB), 32768, 18432, is_full_precision=False)
    assert shorter.sizes == Sizes(8192, 8192)
    assert shorter.reasons["numCells"] == "144 MiB of cache, what the memory limit leaves"


def test_full_precision_is_exact_unless_something_else_is_told() -> None:
    exact = choose(WISHES, 2048, 1024, is_full_precision=True)
    assert (exact.kv_type, exact.flash_attention) == ("f32", False)
    assert exact.reasons["contextTokens"] == "as trained"
    assert choose(replace(WISHES, kv_type="f16"), 2048, 1024, is_full_precision=True).flash_attention is None
