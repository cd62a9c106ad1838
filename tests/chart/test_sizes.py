"""What the chart computes from the models' bytes: memory, space, probes and deadlines."""

from __future__ import annotations

from typing import Any

import pytest

from support.chart import (
    CATALOGUE,
    GIB,
    KUBE_VERSION,
    MIB,
    STRATEGIES,
    Manifests,
    Values,
    bytes_of,
    merged,
    only,
    own,
    render,
)

MODELS = CATALOGUE["models"]
# What llama.cpp and Python need beside a model's weights and caches, and what the server itself needs.
PER_MODEL = 400 * MIB
SERVER = 256 * MIB
PVC: Values = {"storage": {"strategy": "pvc"}}


def resources(manifests: Manifests) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = manifests.pod("server").container("server")["resources"]
    return found


def memory(values: Values) -> int:
    return bytes_of(resources(render(values))["limits"]["memory"])


def startup_seconds(values: Values) -> int:
    probe = render(values).pod("server").container("server")["startupProbe"]
    return int(probe["failureThreshold"]) * int(probe["periodSeconds"])


def deadline(values: Values) -> int:
    return int(render(values, kube_version=KUBE_VERSION).one("Deployment")["spec"]["progressDeadlineSeconds"])


def within_a_mebibyte(actual: int, exact: int) -> bool:
    return 0 <= actual - exact < MIB


def test_memory_of_starter() -> None:
    # Caches of gemma: 1 GiB is 10082 cells of 106496 bytes, which is more than one request's 8192; rounded up to 10240.
    gemma = MODELS["gemma-2-2b-it"]["sizeBytes"] + 10240 * 106496 + PER_MODEL
    # Of llama: 1 GiB would be 2048 cells of 524288 bytes, but one request may take 4096.
    llama = MODELS["llama-2-7b-chat"]["sizeBytes"] + 4096 * 524288 + PER_MODEL
    assert within_a_mebibyte(memory({}), gemma + llama + SERVER)


def test_memory_request_is_the_limit() -> None:
    """With less requested than used, the node's pressure would end the pod."""
    computed = resources(render())
    assert computed["requests"]["memory"] == computed["limits"]["memory"]


@pytest.mark.parametrize("name", CATALOGUE["sets"])
def test_memory_holds_the_weights_of_every_model(name: str) -> None:
    weights = sum(MODELS[model]["sizeBytes"] for model in CATALOGUE["sets"][name])
    assert memory({"models": {"set": name}}) > weights + len(CATALOGUE["sets"][name]) * PER_MODEL


def test_memory_of_a_model_of_unknown_shape_has_a_gibibyte_for_its_caches() -> None:
    assert within_a_mebibyte(memory(only(m=own(sizeBytes=3 * GIB))), 3 * GIB + GIB + PER_MODEL + SERVER)


def test_memory_counts_every_shard() -> None:
    shards = [{"file": "m-2.gguf", "source": "https://host/2", "sha256": "b" * 64, "sizeBytes": 2 * GIB}]
    assert memory(only(m=own(shards=shards))) - memory(only(m=own())) == 2 * GIB


@pytest.mark.parametrize("stated", ["5Gi", "5120Mi", 5 * GIB])
def test_stated_memory_counts_instead_of_the_estimate(stated: str | int) -> None:
    assert memory(only(m=own(memory=stated))) == 5 * GIB + SERVER
    known = {"models": {"set": "none", "add": {"llama-2-7b-chat": {"memory": stated}}}}
    assert memory(known) == 5 * GIB + SERVER


def test_memory_follows_context_and_slots() -> None:
    llama = {"models": {"set": "none", "add": {"llama-2-7b-chat": {}}}}
    # One request's 1024 cells, and as many more as 1 GiB holds: 2048 in all.
    shorter = merged(llama, {"server": {"contextTokens": 1024}})
    assert memory(llama) - memory(shorter) == (4096 - 2048) * 524288
    alone = merged(shorter, {"server": {"numSlots": 1}})
    assert memory(shorter) - memory(alone) == (2048 - 1024) * 524288
    its_own = merged(alone, {"models": {"add": {"llama-2-7b-chat": {"context": 512}}}})
    assert memory(alone) - memory(its_own) == (1024 - 512) * 524288


def test_explicit_resources_are_passed_on() -> None:
    told = {
        "requests": {"cpu": "3", "memory": "20Gi", "ephemeral-storage": "30Gi"},
        "limits": {"cpu": "8", "memory": "24Gi", "ephemeral-storage": "40Gi"},
    }
    assert resources(render({"resources": told})) == told


def test_one_of_the_resources_may_be_explicit_and_the_others_computed() -> None:
    computed = resources(render())
    partly = resources(render({"resources": {"limits": {"memory": "24Gi"}}}))
    assert partly["limits"] == {**computed["limits"], "memory": "24Gi"}
    assert partly["requests"] == computed["requests"]


def test_resource_is_left_out_when_it_is_null() -> None:
    assert "cpu" not in resources(render({"resources": {"limits": {"cpu": None}}}))["limits"]


def test_ephemeral_storage_holds_the_empty_dir() -> None:
    """The kubelet counts an emptyDir as the pod's, and evicts a pod that uses more than its containers' limits."""
    for values in ({}, {"models": {"set": "enterprise"}}, {"storage": {"emptyDir": {"sizeLimit": "100Gi"}}}):
        manifests = render(values)
        pod = manifests.pod("server")
        volumes = [pod.volume(name)["emptyDir"]["sizeLimit"] for name in ("models", "tmp")]
        assert bytes_of(resources(manifests)["limits"]["ephemeral-storage"]) >= sum(map(bytes_of, volumes))
        weights = sum(model["sizeBytes"] for model in manifests.config("downloads.yaml")["models"])
        assert bytes_of(resources(manifests)["requests"]["ephemeral-storage"]) >= weights * 11 // 10


@pytest.mark.parametrize("strategy", ["pvc", "baked", "baked-volume"])
def test_ephemeral_storage_holds_no_models_that_are_elsewhere(strategy: str) -> None:
    computed = resources(render(STRATEGIES[strategy], kube_version=KUBE_VERSION))
    assert (computed["requests"]["ephemeral-storage"], computed["limits"]["ephemeral-storage"]) == ("256Mi", "1024Mi")


def test_startup_probe_lets_the_models_be_read() -> None:
    weights = sum(MODELS[model]["sizeBytes"] for model in CATALOGUE["sets"]["starter"])
    assert 60 + weights // (50 * MIB) <= startup_seconds({}) <= 60 + weights // (50 * MIB) + 5


def test_startup_probe_is_monotone() -> None:
    by_bytes = [startup_seconds(only(m=own(sizeBytes=size * GIB))) for size in (1, 2, 10, 70)]
    assert by_bytes == sorted(by_bytes)
    assert by_bytes[0] < by_bytes[-1]
    by_bandwidth = [
        startup_seconds({"server": {"minReadBandwidth": quantity}}) for quantity in ("1Gi", "50Mi", "5Mi", 1024 * 1024)
    ]
    assert by_bandwidth == sorted(by_bandwidth)
    assert by_bandwidth[0] < by_bandwidth[-1]


@pytest.mark.parametrize("strategy", ["emptyDir", "pvc"])
def test_progress_deadline_holds_the_download_and_the_start(strategy: str) -> None:
    values = STRATEGIES[strategy]
    weights = sum(MODELS[model]["sizeBytes"] for model in CATALOGUE["sets"]["starter"])
    assert deadline(values) >= weights / (2 * MIB) + startup_seconds(values)


@pytest.mark.parametrize("strategy", ["emptyDir", "pvc"])
def test_progress_deadline_is_monotone(strategy: str) -> None:
    roomy = {"storage": {"pvc": {"size": "200Gi"}}}
    of = [deadline(merged(STRATEGIES[strategy], roomy, only(m=own(sizeBytes=size * GIB)))) for size in (1, 2, 10, 70)]
    assert of == sorted(of)
    assert of[0] < of[-1]
    bandwidths = ("1Gi", "20Mi", "2Mi", "100Ki", 1024)
    of = [deadline(merged(STRATEGIES[strategy], {"download": {"minBandwidth": quantity}})) for quantity in bandwidths]
    assert of == sorted(of)
    assert of[0] < of[-1]


def test_progress_deadline_is_never_less_than_that_of_kubernetes() -> None:
    assert deadline(merged(only(m=own(sizeBytes=1)), {"download": {"minBandwidth": "1Gi"}})) == 600


def test_progress_deadline_holds_no_download_of_baked_models() -> None:
    assert deadline(STRATEGIES["baked"]) == 600
    slow = {"download": {"minBandwidth": "1Ki"}}
    assert deadline(merged(STRATEGIES["baked"], slow)) == deadline(STRATEGIES["baked"])


@pytest.mark.parametrize("values", [{"download": {"minBandwidth": 1}}, {"server": {"minReadBandwidth": 1}}])
def test_times_fit_what_kubernetes_can_count(values: Values) -> None:
    manifests = render(merged(values, only(m=own(sizeBytes=70 * GIB))))
    assert manifests.one("Deployment")["spec"]["progressDeadlineSeconds"] < 2**31
    assert manifests.pod("server").container("server")["startupProbe"]["failureThreshold"] < 2**31


def test_grace_period_holds_the_pause_and_the_streams() -> None:
    manifests = render({"server": {"preStopSeconds": 33, "graceSeconds": 600}})
    pod = manifests.pod("server")
    assert "time.sleep(33)" in pod.container("server")["lifecycle"]["preStop"]["exec"]["command"][-1]
    assert manifests.config("server.yaml")["graceSeconds"] == 600
    assert pod.spec["terminationGracePeriodSeconds"] > 633


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        # 8192 tokens, at ten a second.
        ({}, 820),
        ({"server": {"minTokensPerSecond": 4}}, 2048),
        # The largest context of all models, which may be less than what the server allows.
        (only(llama_2_7b_chat={}), 410),
        (only(m=own(context=100_000), n=own(file="n.gguf", context=500)), 10_000),
        ({"server": {"contextTokens": 256}}, 60),
        (only(m=own(context=16_777_216)), 86_400),
        ({"server": {"graceSeconds": 0}}, 0),
    ],
)
def test_grace_lasts_as_long_as_the_longest_answer(values: Values, seconds: int) -> None:
    manifests = render(values)
    assert manifests.config("server.yaml")["graceSeconds"] == seconds
    assert manifests.pod("server").spec["terminationGracePeriodSeconds"] == 10 + seconds + 15


def test_gpu_is_requested_and_limited() -> None:
    assert "nvidia.com/gpu" not in render().text
    computed = resources(render({"gpu": {"enabled": True}}))
    assert computed["requests"]["nvidia.com/gpu"] == computed["limits"]["nvidia.com/gpu"] == 1
    other = resources(render({"gpu": {"enabled": True, "resource": "amd.com/gpu", "count": 2}}))
    assert other["requests"]["amd.com/gpu"] == other["limits"]["amd.com/gpu"] == 2


@pytest.mark.parametrize(
    "values",
    [
        {"server": {"contextTokens": 1048576}, "models": {"set": "none", "add": {"qwen3-4b": {}}}},
        {"storage": {"strategy": "pvc", "pvc": {"uploader": {"enabled": True, "timeoutSeconds": 2592000}}}},
        {"storage": {"emptyDir": {"sizeLimit": 10**11}}, "download": {"minBandwidth": 10**6, "maxBandwidth": 10**7}},
        only(m=own(context=1048576, memory=10**11, sizeBytes=10**10)),
    ],
)
def test_large_numbers_are_written_in_digits(values: Values) -> None:
    """Helm reads numbers of values as floating-point ones, and prints those from a million on as 1e+06."""
    assert "e+" not in render(values).text
