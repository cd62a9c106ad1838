"""Which models: sets, what is added and removed, and what becomes of them in the files that the two programs read."""

from __future__ import annotations

import pytest

from support.chart import CATALOGUE, STRATEGIES, UNDECLARED, Manifests, Values, merged, only, own, render

PVC = {"storage": {"strategy": "pvc"}}
NOTHING: Values = {**UNDECLARED, **PVC}


def ids(manifests: Manifests) -> list[str]:
    """Returns the models in order, after seeing that both programs are told the same."""
    fetched = [model["id"] for model in manifests.config("downloads.yaml")["models"]]
    served = [model["id"] for model in manifests.config("server.yaml").get("models", [])]
    tested = manifests.pod("test").spec["containers"][0]["env"]
    assert fetched == served == next(entry["value"] for entry in tested if entry["name"] == "MODELS").split()
    return fetched


def default(values: Values) -> str | None:
    data: dict[str, str] = render(values).one("ConfigMap")["data"]
    return data.get("DEFAULT_MODEL")


def downloads(values: Values) -> dict[str, Values]:
    return {model["id"]: model for model in render(values).config("downloads.yaml")["models"]}


@pytest.mark.parametrize("name", CATALOGUE["sets"])
def test_set_is_what_the_catalogue_lists(name: str) -> None:
    manifests = render({"models": {"set": name}})
    assert ids(manifests) == CATALOGUE["sets"][name]
    for model in manifests.config("downloads.yaml")["models"]:
        known = CATALOGUE["models"][model["id"]]
        assert {key: value for key, value in model.items() if key != "id"} == {
            key: known[key] for key in ("file", "source", "sha256", "sizeBytes")
        }


def test_starter_is_the_default() -> None:
    assert ids(render()) == CATALOGUE["sets"]["starter"]


def test_added_models_follow_the_set_by_name() -> None:
    manifests = render({"models": {"add": {"qwen3-4b": {}, "aaa": own(), "llama-3.2-1b-instruct": {}}}})
    assert ids(manifests) == [*CATALOGUE["sets"]["starter"], "aaa", "llama-3.2-1b-instruct", "qwen3-4b"]


def test_added_model_of_the_catalogue_needs_its_id_alone() -> None:
    known = CATALOGUE["models"]["qwen3-4b"]
    assert downloads(only(qwen3_4b={})) == {
        "qwen3-4b": {"id": "qwen3-4b", **{key: known[key] for key in ("file", "source", "sha256", "sizeBytes")}}
    }


def test_removed_model_is_left_out() -> None:
    assert ids(render({"models": {"remove": ["gemma-2-2b-it"]}})) == ["llama-2-7b-chat"]


def test_removed_model_may_be_added_otherwise() -> None:
    manifests = render({"models": {"remove": ["gemma-2-2b-it"], "add": {"gemma-2-2b-it": {"context": 1024}}}})
    assert ids(manifests) == ["llama-2-7b-chat", "gemma-2-2b-it"]


def test_context_of_a_model_in_the_set_is_overridden_and_nothing_else() -> None:
    values: Values = {"models": {"add": {"llama-2-7b-chat": {"context": 2048}}}}
    assert ids(render(values)) == CATALOGUE["sets"]["starter"]
    assert downloads(values) == downloads({})
    known = [CATALOGUE["models"][name]["file"] for name in CATALOGUE["sets"]["starter"]]
    assert render(values).config("server.yaml")["models"] == [
        {"id": "gemma-2-2b-it", "file": known[0]},
        {"id": "llama-2-7b-chat", "file": known[1], "contextTokens": 2048},
    ]


def test_source_of_a_model_in_the_catalogue_is_overridden_and_its_digest_stays() -> None:
    mirror = "https://mirror.example.com/llama.gguf"
    model = downloads({"models": {"add": {"llama-2-7b-chat": {"source": mirror}}}})["llama-2-7b-chat"]
    assert model["source"] == mirror
    assert model["file"] == CATALOGUE["models"]["llama-2-7b-chat"]["file"]
    assert model["sha256"] == CATALOGUE["models"]["llama-2-7b-chat"]["sha256"]


def test_own_models_alone() -> None:
    manifests = render(only(b=own(file="b.gguf"), a=own(file="a.gguf")))
    assert ids(manifests) == ["a", "b"]
    assert manifests.config("downloads.yaml") == {
        "modelPath": "/app/models",
        "allowUnverified": False,
        "models": [{"id": name, "file": f"{name}.gguf", **own()} for name in ("a", "b")],
    }


@pytest.mark.parametrize(
    "source",
    [
        "https://host/folder/name.Q8_0.gguf",
        "https://host/folder/name.Q8_0.gguf?signature=a/b@c",
        "https://host/folder/name.Q8_0.gguf#fragment",
        "http://user:password@host:8080/name.Q8_0.gguf",
        "file:///mnt/name.Q8_0.gguf",
        "s3://my-bucket.team/folder/name.Q8_0.gguf",
        f"hf://org/repo/name.Q8_0.gguf@{'0' * 40}",
        "hf://org/repo/folder/name.Q8_0.gguf@main",
    ],
)
def test_file_is_named_by_the_last_part_of_the_source(source: str) -> None:
    assert downloads(only(m=own(source=source)))["m"]["file"] == "name.Q8_0.gguf"


@pytest.mark.parametrize("name", ["1.5", "1e3", "true", "null", "2026-11-24", "0x1f", "No"])
def test_id_that_yaml_could_take_for_something_else_stays_text(name: str) -> None:
    values = {"models": {"set": "none", "add": {name: own()}}}
    assert ids(render(values)) == [name]
    assert default(values) == name


def test_digest_is_written_in_small_letters() -> None:
    assert downloads(only(m=own(sha256="A" * 64)))["m"]["sha256"] == "a" * 64


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, "llama-2-7b-chat"),
        ({"models": {"remove": ["llama-2-7b-chat"]}}, "gemma-2-2b-it"),
        ({"models": {"default": "gemma-2-2b-it"}}, "gemma-2-2b-it"),
        (only(b=own(file="b.gguf"), a=own(file="a.gguf")), "a"),
        ({"models": {"add": {"own": own()}, "default": "own"}}, "own"),
        (NOTHING, None),
        (merged(NOTHING, {"models": {"default": "uploaded"}}), "uploaded"),
    ],
)
def test_default_model(values: Values, expected: str | None) -> None:
    assert default(values) == expected


def test_set_none_on_a_claim_serves_what_is_there() -> None:
    manifests = render(NOTHING)
    assert manifests.all("Job") == []
    assert "initContainers" not in manifests.pod("server").spec
    assert manifests.config("downloads.yaml")["models"] == []
    assert "models" not in manifests.config("server.yaml")
    assert ids(manifests) == []


def test_mirrors_and_shards_are_passed_on() -> None:
    shards = [
        {
            "file": f"big-0000{number}-of-00003.gguf",
            "source": f"https://host/{number}",
            "sha256": str(number) * 64,
            "sizeBytes": 5,
        }
        for number in (2, 3)
    ]
    shards[0]["mirrors"] = ["http://mirror:8080/2"]
    big = own(file="big-00001-of-00003.gguf", mirrors=["https://a/1.gguf", f"hf://org/repo/1.gguf@{'1' * 40}"], shards=shards)
    assert downloads(only(big=big)) == {"big": {"id": "big", **big}}
    assert render(only(big=big)).config("server.yaml")["models"] == [{"id": "big", "file": "big-00001-of-00003.gguf"}]


def test_model_without_a_digest_is_passed_on_without_one() -> None:
    pinned = {"source": f"hf://org/repo/m.gguf@{'1' * 40}", "sizeBytes": 5}
    assert downloads(only(m=pinned)) == {"m": {"id": "m", "file": "m.gguf", **pinned}}
    artifact = {"source": f"oci://ghcr.io/org/m@sha256:{'1' * 64}#m.gguf", "file": "m.gguf", "sizeBytes": 5}
    assert downloads(only(m=artifact)) == {"m": {"id": "m", **artifact}}
    unverified = merged(only(m={"source": "https://host/m.gguf", "sizeBytes": 5}), {"models": {"allowUnverified": True}})
    assert render(unverified).config("downloads.yaml")["allowUnverified"] is True


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_changed_set_replaces_the_pods(strategy: str) -> None:
    before, after = (
        render(merged(STRATEGIES[strategy], {"models": {"set": name}}), kube_version="1.35.0").pod("server").annotations
        for name in ("starter", "production")
    )
    assert before["nlocalmodels.io/set"] != after["nlocalmodels.io/set"]


@pytest.mark.parametrize("values", [{"models": {"add": {"llama-2-7b-chat": {"context": 2048}}}}, {"server": {"numSlots": 4}}])
def test_what_the_server_reads_at_its_start_replaces_the_pods_and_not_the_set(values: Values) -> None:
    before, after = (render(merged(PVC, more)) for more in ({}, values))
    assert before.pod("server").annotations["checksum/server"] != after.pod("server").annotations["checksum/server"]
    assert before.pod("server").annotations["nlocalmodels.io/set"] == after.pod("server").annotations["nlocalmodels.io/set"]
    assert before.one("Job") == after.one("Job")


@pytest.mark.parametrize(
    "values",
    [
        {"download": {"attempts": 3, "maxBandwidth": "10Mi", "endpoint": "https://mirror.example.com"}},
        {"models": {"add": {"llama-2-7b-chat": {"source": "https://mirror.example.com/llama.gguf"}}}},
        {"storage": {"pvc": {"prune": {"keepSets": 5}}}},
    ],
)
def test_how_to_download_restarts_nothing_that_is_downloaded(values: Values) -> None:
    before, after = (render(merged(PVC, more)).pod("server") for more in ({}, values))
    assert before == after
