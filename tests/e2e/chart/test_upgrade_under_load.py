"""What a user does to a release that is in use: not a request may fail wherever one replica can serve."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cluster.cluster import EXISTING, Cluster
from support.kubernetes import Kubernetes, Release
from support.load import Load, under_load
from support.source_pod import SourcePod, source_model

Values = dict[str, Any]


@pytest.fixture(scope="module")
def values(small: Callable[..., Values], storage_class: Callable[[], str]) -> Values:
    pvc = {"size": "1Gi", "storageClass": storage_class(), "keepOnUninstall": False}
    add = {
        "kept": source_model("tiny-a.Q8_0.gguf", file="kept.gguf"),
        "other": source_model("tiny-b.F16.gguf", file="other.gguf"),
    }
    # As long a pause before a pod stops as the chart has by default; the rest is small.
    return small(add, replicas=2, storage={"strategy": "pvc", "pvc": pvc}, server={"preStopSeconds": 10, "graceSeconds": 20})


@pytest.fixture(scope="module")
def installed(release: Callable[..., Release], values: Values, source: SourcePod) -> Iterator[Release]:
    source.reset()
    installed = release("used")
    installed.apply(values)
    yield installed
    installed.uninstall()


@pytest.fixture
def load(installed: Release, kubernetes: Kubernetes, repository: str, values: Values, source: SourcePod) -> Iterator[Load]:
    """Load on the model that every set has; each test begins with the set of `values`."""
    installed.apply(values)
    source.reset()
    address = f"{installed.fullname}.{installed.namespace}.svc.cluster.local:11434"
    with under_load(kubernetes, installed.namespace, f"{repository}:nLocalModels", address, ["kept"]) as load:
        yield load
    assert load.failures == []
    assert load.answers["kept"] > 50


def with_models(values: Values, **models: dict[str, Any] | None) -> Values:
    """Returns the values with models added, or taken away by None."""
    add = {**values["models"]["add"], **{name: model for name, model in models.items() if model is not None}}
    return {**values, "models": {"set": "none", "add": {name: add[name] for name in add if models.get(name, True)}}}


def test_user_adds_a_model(installed: Release, load: Load, values: Values, source: SourcePod) -> None:
    installed.apply(with_models(values, more={"memory": "256Mi", **source_model("tiny-c.gguf")}))
    assert {request["path"] for request in source.requests()} == {"/tiny-c.gguf"}


def test_user_removes_a_model(installed: Release, load: Load, values: Values, source: SourcePod) -> None:
    installed.apply(with_models(values, other=None))
    assert source.requests() == []


def test_user_replaces_a_file_and_rolls_back(installed: Release, load: Load, values: Values, source: SourcePod) -> None:
    replaced = {"memory": "256Mi", **source_model("tiny-c.gguf", file="other.gguf")}
    installed.apply(with_models(values, other=replaced))
    assert {request["path"] for request in source.requests()} == {"/tiny-c.gguf"}
    source.reset()
    installed.rollback()
    assert source.requests() == []


def test_user_upgrades_to_a_set_whose_download_fails_and_rolls_back(
    installed: Release, load: Load, values: Values, source: SourcePod, kubernetes: Kubernetes
) -> None:
    broken = {"memory": "256Mi", **source_model("tiny-c.gguf", sha256="0" * 64)}
    installed.apply(with_models(values, more=broken), wait=False)

    def has_failed() -> bool:
        conditions = [c["type"] for job in installed.jobs() for c in job["status"].get("conditions", [])]
        return "Failed" in conditions

    kubernetes.wait(has_failed, "the Job to fail")
    load.settle()
    source.reset()
    installed.rollback()
    assert source.requests() == []


def test_user_rolls_back_an_upgrade(installed: Release, load: Load, values: Values, source: SourcePod) -> None:
    installed.apply(with_models(values, other=None, more={"memory": "256Mi", **source_model("tiny-c.gguf")}))
    source.reset()
    installed.rollback()
    assert source.requests() == []


def test_pod_is_deleted_during_an_upgrade(installed: Release, load: Load, values: Values, kubernetes: Kubernetes) -> None:
    more = {"memory": "256Mi", **source_model("tiny-c.gguf")}
    installed.apply(with_models(values, more=more), wait=False)
    victim = installed.pods()[0]["metadata"]["name"]
    kubernetes.kubectl("delete", "pod", victim, "-n", installed.namespace, "--wait=false")
    kubernetes.kubectl("rollout", "status", f"deployment/{installed.fullname}", "-n", installed.namespace, "--timeout=240s")


def test_drained_pod_takes_requests_until_all_know_finishes_its_streams_and_ends_with_0(
    installed: Release, load: Load, kubernetes: Kubernetes
) -> None:
    victim = installed.pods()[0]["metadata"]["name"]

    def finalize(*finalizers: str) -> None:
        patch = json.dumps({"metadata": {"finalizers": finalizers}})
        kubernetes.kubectl("patch", "pod", victim, "-n", installed.namespace, "--type=merge", "-p", patch)

    def ended() -> Any:
        (status,) = kubernetes.get("pod", installed.namespace, victim)["status"]["containerStatuses"]
        return status["state"].get("terminated")

    # The pod's object stays until somebody has looked how it ended.
    finalize("nlocalmodels.io/test")
    try:
        kubernetes.kubectl("delete", "pod", victim, "-n", installed.namespace, "--wait=false")
        end = kubernetes.wait(ended, "the pod to end")
    finally:
        finalize()
    assert (end["exitCode"], end["reason"]) == (0, "Completed")


def test_kubelet_restarts(installed: Release, load: Load, kubernetes: Kubernetes, cluster: Cluster) -> None:
    """Both replicas are on the node. Since Kubernetes 1.35 a kubelet that begins anew leaves pods ready that have run for 10 s;
    before, it called all of its pods unready until it had probed them (kubernetes/kubernetes#100277)."""
    if cluster.provider == EXISTING:
        pytest.skip("restarts a kubelet, which needs a node of ours")

    def have_run_for_a_while() -> bool:
        statuses = [pod["status"]["containerStatuses"][0] for pod in installed.pods()]
        starts = [datetime.fromisoformat(status["state"]["running"]["startedAt"]) for status in statuses]
        return len(starts) == 2 and datetime.now(UTC) - max(starts) > timedelta(seconds=20)

    kubernetes.wait(have_run_for_a_while, "the pods to have run for 20 s")
    cluster.restart_kubelet()
    load.settle(100)
