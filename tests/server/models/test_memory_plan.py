"""Who gets how much memory."""

from __future__ import annotations

from pathlib import Path

from nlocalmodels_server.engine.choices import KV_VALUE_BYTES
from nlocalmodels_server.models.gguf_header import Shape, read_shape
from nlocalmodels_server.models.memory_plan import MemoryPlan, Need, need
from support.chart import CATALOGUE
from support.gguf_files import bulk_gguf, write_llama

MIB = 1024**2


def mib(weights: int, cache: int, least_cache: int) -> Need:
    return Need(weights * MIB, cache * MIB, least_cache * MIB)


def test_all_get_what_they_want_without_a_limit() -> None:
    plan = MemoryPlan(None)
    assert plan.give_all({"a": mib(10_000, 1000, 100), "b": mib(10_000, 500, 100)}) == {"a": 1000 * MIB, "b": 500 * MIB}


def test_caches_shrink_before_a_model_is_refused() -> None:
    needs = {"a": mib(1000, 1000, 100), "b": mib(500, 1000, 200)}
    roomy, tight = MemoryPlan((256 + 2400 + 1900) * MIB), MemoryPlan((256 + 1500 + 1100) * MIB)
    assert roomy.give_all(needs) == {"a": 1000 * MIB, "b": 1000 * MIB}
    assert tight.give_all(needs) == {"a": 100 * MIB, "b": 200 * MIB}
    between = MemoryPlan((256 + 1500 + 1100 + 950) * MIB)
    assert between.give_all(needs) == {"a": 1000 * MIB, "b": 250 * MIB}


def test_what_cannot_fit_is_refused_with_the_arithmetic_and_the_rest_fit() -> None:
    plan = MemoryPlan(2000 * MIB)
    needs = {"a": mib(500, 100, 100), "large": mib(4000, 1000, 100), "c": mib(100, 100, 100)}
    assert plan.give_all(needs) == {"a": 100 * MIB, "c": 100 * MIB}
    assert plan.find_shortage(needs["large"]) == (
        "it needs 4500 MiB (4000 weights + 100 cache for one context + 400 beside), and 308 MiB are free "
        "(memory limit 2000 - 96 for the server - 1596 for other models); "
        "raise the memory limit, set its contextTokens lower, or serve fewer models"
    )
    assert plan.find_shortage(mib(600, 100, 100), without="a") is None
    plan.take_back("a")
    assert plan.find_shortage(mib(600, 100, 100)) is None


def test_small_models_need_little_beside_them() -> None:
    assert mib(1, 2, 2).least_bytes == (1 + 2 + 96 + 3) * MIB
    plan = MemoryPlan(512 * MIB)
    assert plan.give_all({name: mib(1, 2, 2) for name in "abcde"}) == dict.fromkeys("abcd", 2 * MIB)


def test_room_for_a_model_that_loads_later_is_not_given_to_caches() -> None:
    plan = MemoryPlan((256 + 900 + 1000) * MIB)
    later = mib(300, 500, 100)
    plan.reserve(later.least_bytes)
    assert plan.give_all({"a": mib(400, 5000, 100)}) == {"a": 300 * MIB}
    assert plan.give("later", later) == 100 * MIB


def test_shape_of_a_file_gives_the_cache_that_llama_cpp_allocates(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "a.gguf")
    assert read_shape(path) == Shape(2048, 256, is_full_precision=True)
    assert need(1, read_shape(path), 2, 1024, KV_VALUE_BYTES["f32"]) == Need(1, 2048 * 1024, 1024 * 1024)


def test_shape_of_the_real_model_is_the_catalogue_s(embedded_model_path: Path) -> None:
    shape, facts = read_shape(embedded_model_path), CATALOGUE["models"]["gemma-3-270m-it"]
    assert shape is not None
    assert shape.kv_values_per_token * 2 == facts["kvBytesPerToken"]
    assert (shape.trained_context_tokens, shape.is_full_precision) == (facts["contextTokens"], False)


def test_model_of_unknown_shape_may_have_the_budget_but_does_not_need_it(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(bulk_gguf(1000))
    assert read_shape(tmp_path / "a.gguf") is None
    assert read_shape(tmp_path / "absent.gguf") is None
    assert need(5, None, 32, None, 2.0) == Need(5, 1024 * MIB, 0)
