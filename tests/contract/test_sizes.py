"""The size of a model's caches: the chart computes it before anything runs, the server when it loads the model."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nlocalmodels_server.engine.sizing import choose_sizes
from nlocalmodels_server.memory import Memory
from nlocalmodels_server.models.reload import Stamp, Target, find_shortage
from nlocalmodels_server.workers.protocol import LoadOptions
from support.chart import CATALOGUE, MIB, Values, bytes_of, included, merged, only, render

KNOWN: dict[str, Values] = {
    name: facts for name, facts in CATALOGUE["models"].items() if not (facts.get("embedding") or name.endswith("-bartowski"))
}
ALL: Values = {"models": {"set": "none", "add": {name: {} for name in KNOWN}}}


def cache_bytes(facts: Values, num_slots: int, context_tokens: int | None) -> int:
    """Returns what the server allocates."""
    per_token = int(facts["kvBytesPerToken"])
    return choose_sizes(facts["contextTokens"], per_token, num_slots, context_tokens).num_cells * per_token


def computed(values: Values) -> dict[str, Any]:
    """Returns what the chart computes of each model."""
    return {model["id"]: model for model in json.loads(included("nlocalmodels.models", values))["models"]}


@pytest.mark.parametrize("num_slots", [1, 7, 32, 256])
@pytest.mark.parametrize("context_tokens", [64, 1000, 4096, 8192, 100_000, 16_777_216])
def test_caches_of_every_model_are_as_large_as_the_server_makes_them(context_tokens: int, num_slots: int) -> None:
    models = computed(merged(ALL, {"server": {"contextTokens": context_tokens, "numSlots": num_slots}}))
    assert {name: model["kvBytes"] for name, model in models.items()} == {
        name: cache_bytes(facts, num_slots, context_tokens) for name, facts in KNOWN.items()
    }


def test_caches_by_default_are_those_of_the_server_s_defaults() -> None:
    assert {name: model["kvBytes"] for name, model in computed(ALL).items()} == {
        name: cache_bytes(facts, 32, None) for name, facts in KNOWN.items()
    }


@pytest.mark.parametrize("context_tokens", [64, 777, 4096])
def test_caches_of_a_model_with_a_context_of_its_own(context_tokens: int) -> None:
    own = {"models": {"add": {name: {"context": context_tokens} for name in KNOWN}}}
    assert {name: model["kvBytes"] for name, model in computed(merged(ALL, own)).items()} == {
        name: cache_bytes(facts, 32, context_tokens) for name, facts in KNOWN.items()
    }


@pytest.mark.parametrize("name", KNOWN)
def test_memory_of_the_pod_holds_weights_caches_and_what_is_beside_them(name: str) -> None:
    facts = KNOWN[name]
    limit = render({"models": {"set": "none", "add": {name: {}}}, "storage": {"emptyDir": {"sizeLimit": "auto"}}})
    memory = bytes_of(limit.pod("server").container("server")["resources"]["limits"]["memory"])
    exact = facts["sizeBytes"] + cache_bytes(facts, 32, None) + 400 * MIB + 256 * MIB
    assert 0 <= memory - exact < MIB


def test_caches_of_a_model_of_unknown_shape_have_the_server_s_budget() -> None:
    """One request's context may need more; then memory has to be stated."""
    model = {"source": "https://host/m.gguf", "sha256": "a" * 64, "sizeBytes": 1}
    assert computed(only(m=model))["m"]["kvBytes"] == 1024 * MIB


@pytest.mark.parametrize("name", KNOWN)
def test_model_fits_beside_its_old_process_where_the_chart_says_so(name: str) -> None:
    values: Values = {"models": {"set": "none", "add": {name: {}}}}
    limit_bytes = int(included("nlocalmodels.overlapBytes", values))
    used_bytes = int(included("nlocalmodels.memoryBytes", values))
    stamp = Stamp(1, int(KNOWN[name]["sizeBytes"]), 1)
    target = Target(name, "m.gguf", LoadOptions(1, 1, 1), (("m.gguf", stamp),))
    assert find_shortage(target, Memory(limit_bytes, used_bytes)) is None
    assert find_shortage(target, Memory(limit_bytes - 2, used_bytes)) is not None
