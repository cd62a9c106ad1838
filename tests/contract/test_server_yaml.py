"""server.yaml: the chart writes it, the server reads it."""

from __future__ import annotations

import pytest

from nlocalmodels_downloader.manifest import ManifestEntry, set_id
from nlocalmodels_server.config import BOUNDS, Config, DeclaredModel, parse_config
from support.chart import (
    CATALOGUE,
    CI_VALUES,
    KUBE_VERSION,
    LIVE,
    STRATEGIES,
    UNDECLARED,
    Values,
    digest_of_a_set_like,
    merged,
    only,
    own,
    problems,
    render,
)

PVC: Values = {"storage": {"strategy": "pvc"}}


def parsed(values: Values) -> Config:
    config, found = parse_config(render(values, kube_version=KUBE_VERSION).config("server.yaml"))
    assert found == []
    return config


def known(name: str) -> DeclaredModel:
    return DeclaredModel(name, CATALOGUE["models"][name]["file"])


def manifest_id(name: str) -> str:
    """Returns the id that the downloader gives to a set of the catalogue."""
    models = [CATALOGUE["models"][model] for model in CATALOGUE["sets"][name]]
    return set_id([ManifestEntry("", model["file"], model["sha256"], model["sizeBytes"]) for model in models])


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", CATALOGUE["sets"])
def test_server_reads_which_models_belong_here(strategy: str, name: str) -> None:
    values = merged(STRATEGIES[strategy], {"models": {"set": name}})
    models = tuple(known(model) for model in CATALOGUE["sets"][name])
    # What is in an image is the set that it was built from, or the image is refused.
    set_of_image = manifest_id(name) if strategy.startswith("baked") else None
    assert parsed(values) == Config("default", 8192, 32, None, 820, serve_undeclared=True, models=models, set_id=set_of_image)


def test_server_reads_how_to_serve() -> None:
    told = {"readyWhen": "all", "contextTokens": 2048, "numSlots": 3, "numThreads": 5, "graceSeconds": 0}
    assert parsed({"server": told}) == Config("all", 2048, 3, 5, 0, models=(known("gemma-2-2b-it"), known("llama-2-7b-chat")))


def test_server_reads_the_context_of_one_model() -> None:
    values = only(llama_2_7b_chat={"context": 512}, own=own(context=1_500_000))
    assert parsed(values).models == (
        DeclaredModel("llama-2-7b-chat", CATALOGUE["models"]["llama-2-7b-chat"]["file"], 512),
        DeclaredModel("own", "own.Q4_K_M.gguf", 1_500_000),
    )


@pytest.mark.parametrize("strategy", LIVE)
def test_server_reads_that_it_follows_the_set(strategy: str) -> None:
    config = parsed(LIVE[strategy])
    assert (config.reload, config.default_model) == ("live", "llama-2-7b-chat")
    assert config.set_id == manifest_id("starter")


def test_server_reads_a_set_that_looks_like_a_number() -> None:
    digest = digest_of_a_set_like("[0-9]+e[0-9]+")
    assert parsed(merged(LIVE["pvc"], only(m=own(sha256=digest)))).set_id is not None


def test_server_serves_what_is_there_when_nothing_is_declared() -> None:
    assert parsed(merged(PVC, UNDECLARED)).models is None


def test_server_reads_the_first_file_of_a_split_model() -> None:
    second = {"file": "m-00002-of-00002.gguf", "source": "https://host/2", "sha256": "b" * 64, "sizeBytes": 1}
    models = parsed(only(m=own(file="m-00001-of-00002.gguf", shards=[second]))).models
    assert models == (DeclaredModel("m", "m-00001-of-00002.gguf"),)


def test_later_part_of_a_split_model_is_refused_by_both() -> None:
    file = "m-00002-of-00002.gguf"
    assert problems(only(m=own(file=file)))[0].startswith(f"models.add.m.file: '{file}' is a later part")
    _, found = parse_config({"models": [{"id": "m", "file": file}]})
    assert "is a later shard" in found[0]


@pytest.mark.parametrize("name", ["1.5", "no", "x" * 128, "A.b_c-d"])
def test_server_reads_odd_names(name: str) -> None:
    values = {"models": {"set": "none", "add": {name: own(file="a +b.GGUF")}}}
    assert parsed(values).models == (DeclaredModel(name, "a +b.GGUF"),)


@pytest.mark.parametrize("key", BOUNDS)
def test_bounds_of_the_chart_are_those_of_the_server(key: str) -> None:
    low, high = BOUNDS[key]
    # In the chart, no threads mean as many as the CPU limit.
    low_in_chart = 0 if key == "numThreads" else low
    roomy = {"models": {"set": "none", "add": {"qwen3-0.6b": {}}}}
    for value in {low, high, low_in_chart}:
        parsed(merged(roomy, {"server": {key: value}}))
    for value in (low_in_chart - 1, high + 1):
        (sentence,) = problems(merged(roomy, {"server": {key: value}}))
        assert sentence == f"server.{key}: {value} is out of range; set it from {low_in_chart} to {high}."


@pytest.mark.parametrize("case", CI_VALUES)
def test_server_reads_the_values_of_chart_testing(case: str) -> None:
    config = parsed(CI_VALUES[case])
    assert config.models is not None
    assert [model.id for model in config.models] == sorted(CI_VALUES[case]["models"]["add"])
