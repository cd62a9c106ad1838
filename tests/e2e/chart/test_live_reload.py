"""models.reload=live: what a user does to the models of a release in use. Not a request fails, and no container restarts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from support.kubernetes import Kubernetes, Release
from support.load import Load, under_load
from support.source_pod import HOST, SourcePod, source_model

Values = dict[str, Any]

NUM_PODS = 2
SIZE_BYTES = 467_680
# Of each file's first byte, which is asked for alone, and of the connections that are one too many.
PROBE_BYTES = 64
# A kubelet may take more than a minute to bring a changed ConfigMap to its pods.
LIVE_SECONDS = 180.0


# What does not differ between them is tried on one of them.
on_claim = pytest.mark.parametrize("strategy", ["pvc"], indirect=True, scope="module")


@pytest.fixture(scope="module", params=["pvc", "emptyDir"])
def strategy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def values(strategy: str, small: Callable[..., Values], storage_class: Callable[[], str]) -> Values:
    storage: Values = {"strategy": strategy, "emptyDir": {"sizeLimit": "1Gi"}}
    if strategy == "pvc":
        storage["pvc"] = {"size": "1Gi", "storageClass": storage_class(), "keepOnUninstall": False}
    names = {"kept": "tiny-a.Q8_0.gguf", "other": "tiny-b.F16.gguf", "spare": "chat-d.gguf"}
    add = {name: source_model(file, file=f"{name}.gguf") for name, file in names.items()}
    told = small(
        add,
        replicas=NUM_PODS,
        storage=storage,
        server={"preStopSeconds": 10, "graceSeconds": 20},
        resources={
            "requests": {"cpu": "100m", "memory": "256Mi", "ephemeral-storage": "256Mi"},
            "limits": {"cpu": "2", "memory": "6Gi", "ephemeral-storage": "2Gi"},
        },
    )
    told["models"]["reload"] = "live"
    return told


def with_models(values: Values, **models: Values | None) -> Values:
    """Returns the values with models added or replaced, or taken away by None."""
    add = {**values["models"]["add"], **{name: {"memory": "256Mi", **model} for name, model in models.items() if model}}
    kept = {name: model for name, model in add.items() if models.get(name, model) is not None}
    return {**values, "models": {**values["models"], "add": kept}}


def nudge(release: Release) -> None:
    """Has the kubelet look at the pods, and so bring them a changed ConfigMap: by itself it does so once a minute."""
    stamp = f"example.com/looked-at={time.monotonic_ns()}"
    release.kubernetes.run("kubectl", "annotate", "pods", "-n", release.namespace, "-l", release.selector, "--overwrite", stamp)


def converge(release: Release) -> None:
    """Waits until every pod serves the set that the Deployment names, and nothing else."""
    (deployment,) = release.kubernetes.get("deployment", release.namespace, selector=release.selector)
    wanted = deployment["metadata"]["annotations"]["nlocalmodels.io/set"]

    def is_there() -> bool:
        nudge(release)
        said = release.readiness()
        return len(said) == NUM_PODS and all(
            body.get("set") == wanted
            and not {"pending", "draining", "configProblem"} & body.keys()
            and all(model["state"] == "ready" and "replacement" not in model for model in body["models"].values())
            for body in said.values()
        )

    release.kubernetes.wait(is_there, f"all pods to serve set {wanted}", LIVE_SECONDS)


@pytest.fixture(scope="module")
def installed(strategy: str, release: Callable[..., Release], values: Values, source: SourcePod) -> Iterator[Release]:
    source.reset()
    installed = release(f"live-{strategy.lower()}")
    installed.apply(values)
    converge(installed)
    yield installed
    installed.uninstall()


@pytest.fixture(scope="module")
def whole_load(installed: Release, kubernetes: Kubernetes, repository: str) -> Iterator[Load]:
    """Load on a model that stays as it is, and on one whose file is replaced, through all that follows."""
    address = f"{installed.fullname}.{installed.namespace}.svc.cluster.local:11434"
    with under_load(kubernetes, installed.namespace, f"{repository}:nLocalModels", address, ["kept", "other"]) as load:
        yield load
    assert load.failures == []
    assert min(load.answers["kept"], load.answers["other"]) > 100


@pytest.fixture
def load(installed: Release, whole_load: Load, values: Values, source: SourcePod) -> Iterator[Load]:
    """Each test begins with the set of `values`, and says itself which of its requests have failed."""
    installed.apply(values)
    converge(installed)
    source.reset()
    yield whole_load
    whole_load.settle()
    assert whole_load.so_far()[1] == []


@pytest.fixture
def steady(installed: Release) -> Iterator[None]:
    """The pods stay the same, and none of their containers restarts."""

    def restarts() -> dict[str, list[int]]:
        return {
            pod["metadata"]["uid"]: [
                status["restartCount"]
                for kind in ("initContainerStatuses", "containerStatuses")
                for status in pod["status"][kind]
            ]
            for pod in installed.pods()
        }

    before = restarts()
    assert len(before) == NUM_PODS
    yield
    assert restarts() == before


def fetched(source: SourcePod, strategy: str, *files: str) -> None:
    """Asserts that these files were fetched, once for each volume, and nothing else."""
    assert {request["path"] for request in source.requests()} == {f"/{file}" for file in files}
    num_volumes = 1 if strategy == "pvc" else NUM_PODS
    for file in files:
        assert num_volumes * SIZE_BYTES <= source.sent_bytes(file) <= num_volumes * (SIZE_BYTES + PROBE_BYTES)


def said(release: Release, model: str) -> str:
    """Returns what a model makes of a prompt, which depends on its weights alone."""
    with release.served() as address:
        body = {"model": model, "prompt": "abc", "max_tokens": 16, "temperature": 0}
        answer = httpx.post(f"{address}/v1/completions", json=body, timeout=60)
        return str(answer.json()["choices"][0]["text"]) if answer.status_code == 200 else str(answer.status_code)


def why_not(release: Release, strategy: str) -> str:
    """Returns what the cluster says of a download that fails: the Job's message, or the sidecars' logs."""
    nudge(release)
    if strategy == "pvc":
        return "".join(
            release.kubernetes.kubectl("describe", "pod", pod["metadata"]["name"], "-n", release.namespace)
            for pod in release.pods("downloader")
        )
    n = ("-n", release.namespace, "-c", "model-watcher")
    return "".join(release.kubernetes.run("kubectl", "logs", pod["metadata"]["name"], *n).stdout for pod in release.pods())


def test_user_adds_a_model(
    installed: Release, load: Load, steady: None, values: Values, source: SourcePod, strategy: str
) -> None:
    installed.apply(with_models(values, more=source_model("tiny-c.gguf")))
    converge(installed)
    fetched(source, strategy, "tiny-c.gguf")
    assert said(installed, "more") != "404"


@on_claim
def test_user_removes_a_model(installed: Release, load: Load, steady: None, values: Values, source: SourcePod) -> None:
    installed.apply(with_models(values, spare=None))
    converge(installed)
    assert source.requests() == []
    assert said(installed, "spare") == "404"


def test_user_replaces_a_file_and_rolls_back(
    installed: Release, load: Load, steady: None, values: Values, source: SourcePod, strategy: str
) -> None:
    before = said(installed, "other")
    installed.apply(with_models(values, other=source_model("tiny-c.gguf", file="other.gguf")))
    converge(installed)
    fetched(source, strategy, "tiny-c.gguf")
    assert said(installed, "other") != before
    source.reset()
    installed.rollback()
    converge(installed)
    installed.kubernetes.wait(lambda: said(installed, "other") == before, "the file from before to be served", LIVE_SECONDS)
    assert source.requests() == []


@on_claim
def test_user_adds_a_model_with_a_wrong_digest_and_rolls_back(
    installed: Release, load: Load, steady: None, values: Values, source: SourcePod, strategy: str
) -> None:
    fail_and_roll_back(installed, load, values, source, strategy, {"sha256": "0" * 64}, "0" * 64)


def test_user_adds_a_model_whose_source_is_gone_and_rolls_back(
    installed: Release, load: Load, steady: None, values: Values, source: SourcePod, strategy: str
) -> None:
    # With a digest that nothing on the volume has, or the source would not be asked.
    wrong = {"sha256": "2" * 64, "source": f"http://{HOST}/no-such.gguf"}
    fail_and_roll_back(installed, load, values, source, strategy, wrong, "no-such.gguf")


def fail_and_roll_back(
    release: Release, load: Load, values: Values, source: SourcePod, strategy: str, wrong: Values, reason: str
) -> None:
    """Upgrades to a set with a model that is wrong in this, waits until the reason is told, and goes back."""
    model = source_model("tiny-c.gguf", **wrong)
    path = model["source"].rsplit("/", 1)[-1]
    served = {body["set"] for body in release.readiness().values()}
    release.apply(with_models(values, more=model))
    release.kubernetes.wait(lambda: reason in why_not(release, strategy), "the reason", LIVE_SECONDS)

    def all_wait() -> bool:
        nudge(release)
        said = release.readiness().values()
        return all("pending" in body and f"{body['pending']['set']}.json" in str(body["pending"]) for body in said)

    release.kubernetes.wait(all_wait, "every pod to say what it waits for", LIVE_SECONDS)
    assert {body["set"] for body in release.readiness().values()} == served
    load.settle()
    source.reset()
    release.rollback()
    converge(release)
    # A sidecar may have tried once more before it heard of the rollback.
    assert {request["path"] for request in source.requests()} <= ({f"/{path}"} if strategy == "emptyDir" else set())


@on_claim
def test_pod_is_deleted_while_a_model_is_added(installed: Release, load: Load, values: Values, kubernetes: Kubernetes) -> None:
    installed.apply(with_models(values, more=source_model("tiny-c.gguf")))
    victim = installed.pods()[0]["metadata"]["name"]
    kubernetes.kubectl("delete", "pod", victim, "-n", installed.namespace, "--wait=false")
    converge(installed)


def test_pod_that_starts_while_a_download_fails_serves_after_the_rollback(
    installed: Release, load: Load, values: Values, kubernetes: Kubernetes, strategy: str
) -> None:
    installed.apply(with_models(values, more={**source_model("tiny-c.gguf"), "sha256": "1" * 64}))
    kubernetes.wait(lambda: "1" * 64 in why_not(installed, strategy), "the reason", LIVE_SECONDS)
    victim, other = (pod["metadata"]["name"] for pod in installed.pods())
    kubernetes.kubectl("delete", "pod", victim, "-n", installed.namespace, "--wait=false")

    def waits() -> bool:
        new = next((pod for pod in installed.pods() if pod["metadata"]["name"] not in (victim, other)), None)
        return new is not None and any(
            status["restartCount"] or "running" in status["state"] for status in new["status"].get("initContainerStatuses", [])
        )

    kubernetes.wait(waits, "the new pod to wait for its models")
    load.settle()
    installed.rollback()
    converge(installed)
