"""storage.strategy=emptyDir: each pod fetches its models in an init container, and serves them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI
from pytest_helm_charts.clusters import Cluster as ClientCluster
from pytest_helm_charts.k8s.deployment import wait_for_deployments_to_run

import embedded_model
from cluster.cluster import EXISTING, Cluster
from support.kubernetes import Kubernetes, Release, commands, notes
from support.source_pod import SourcePod, source_model

REAL = embedded_model.ID


@pytest.fixture(scope="module")
def installed(
    release: Callable[..., Release], small: Callable[..., dict[str, Any]], source: SourcePod
) -> Iterator[tuple[Release, str]]:
    """A release with the real model and a generated one, and what Helm printed of it."""
    source.reset()
    installed = release("models")
    add = {REAL: source_model(embedded_model.FILE, memory="1Gi", context=2048), "tiny-a": source_model("tiny-a.Q8_0.gguf")}
    values = small(add, replicas=2)
    values["models"]["default"] = REAL
    printed = installed.apply(values)
    yield installed, printed
    installed.uninstall()


def test_pods_become_ready_under_restricted_pod_security(installed: tuple[Release, str], kube_cluster: ClientCluster) -> None:
    release, _ = installed
    wait_for_deployments_to_run(kube_cluster.kube_client, [release.fullname], release.namespace, 60)
    assert [container["name"] for pod in release.pods() for container in pod["spec"]["initContainers"]] == [
        "model-downloader"
    ] * 2


def test_each_pod_fetched_each_model_once(installed: tuple[Release, str], source: SourcePod) -> None:
    for file, size_bytes in ((embedded_model.FILE, embedded_model.SIZE_BYTES), ("tiny-a.Q8_0.gguf", 467_680)):
        # A probe of a byte comes before the ranges.
        assert 2 * size_bytes <= source.sent_bytes(file) <= 2 * size_bytes + 64


def test_official_client_gets_sense_from_the_real_model_through_the_service(installed: tuple[Release, str]) -> None:
    release, _ = installed
    with release.served() as address:
        client = OpenAI(base_url=f"{address}/v1", api_key="none")
        assert {model.id for model in client.models.list()} == {REAL, "tiny-a"}
        answer = client.completions.create(
            model=REAL, prompt="The capital city of France is called", temperature=0, max_tokens=5
        )
        assert "Paris" in answer.choices[0].text
        small = client.completions.create(model="tiny-a", prompt="abc", max_tokens=8)
        assert small.usage is not None
        assert small.usage.completion_tokens == 8


def test_helm_test_asks_every_model(installed: tuple[Release, str]) -> None:
    release, _ = installed
    assert "Phase:          Succeeded" in release.test()


def test_notes_say_what_is_served_and_their_commands_work(installed: tuple[Release, str], kubernetes: Kubernetes) -> None:
    _, printed = installed
    text = notes(printed)
    assert "Storage: emptyDir. Each of the 2 pods" in text
    assert f"{REAL}" in text
    lines = commands(text)
    log, rollout, forward, models, completion, helm_test = lines
    assert "sha256" in kubernetes.shell(log.removesuffix(" -f"))
    assert "successfully rolled out" in kubernetes.shell(rollout)
    # The port is forwarded in the background, as in a second terminal.
    script = f"{forward} >/dev/null & trap 'kill $!' EXIT\n"
    script += "for _ in $(seq 100); do curl -sf http://localhost:11434/livez >/dev/null && break; sleep 0.1; done\n"
    listed = json.loads(kubernetes.shell(script + models.replace("curl", "curl -sS")))
    assert {model["id"] for model in listed["data"]} == {REAL, "tiny-a"}
    answer = json.loads(kubernetes.shell(script + completion.replace("curl", "curl -sS")))
    assert answer["model"] == REAL
    assert "Succeeded" in kubernetes.shell(helm_test)


def test_container_that_restarts_serves_again_without_a_request_to_the_source(
    installed: tuple[Release, str], kubernetes: Kubernetes, source: SourcePod
) -> None:
    release, _ = installed
    pod = release.pods()[0]["metadata"]["name"]
    num_before = len(source.requests())
    kubernetes.run("kubectl", "exec", pod, "-n", release.namespace, "--", "python", "-c", "import os; os.kill(1, 15)")

    def restarted() -> bool:
        status = kubernetes.get("pod", release.namespace, pod)["status"]
        (server,) = status["containerStatuses"]
        return bool(server["restartCount"] == 1 and server["ready"])

    kubernetes.wait(restarted, "the restarted server to be ready")
    assert len(source.requests()) == num_before
    with kubernetes.forwarded(release.namespace, f"pod/{pod}", 11434) as address:
        answer = httpx.post(f"{address}/v1/completions", json={"model": "tiny-a", "prompt": "abc", "max_tokens": 4}, timeout=60)
        assert answer.json()["usage"]["completion_tokens"] == 4


def test_pod_that_is_made_anew_on_its_node_verifies_what_it_has_without_a_request_to_the_source(
    installed: tuple[Release, str], kubernetes: Kubernetes, cluster: Cluster, source: SourcePod
) -> None:
    if cluster.provider == EXISTING:
        pytest.skip("kills a pod's sandbox, which needs a node of ours")
    release, _ = installed
    pod = release.pods()[1]
    name, num_before = pod["metadata"]["name"], len(source.requests())
    cluster.kill_sandbox(pod["metadata"]["uid"])

    def started_anew() -> bool:
        status = kubernetes.get("pod", release.namespace, name)["status"]
        (downloader,), (server,) = status["initContainerStatuses"], status["containerStatuses"]
        return bool(downloader["restartCount"] == 1 and server["ready"] and server["restartCount"] == 1)

    kubernetes.wait(started_anew, "the pod to be made anew")
    log = kubernetes.kubectl("logs", name, "-c", "model-downloader", "-n", release.namespace)
    assert f"{embedded_model.FILE} is present and verified, nothing to fetch" in log
    assert len(source.requests()) == num_before


def test_server_can_write_nowhere_but_to_its_tmp(installed: tuple[Release, str], kubernetes: Kubernetes) -> None:
    release, _ = installed
    pod = release.pods()[0]["metadata"]["name"]
    for folder in ("/app/models", "/", "/etc/nlocalmodels"):
        result = kubernetes.run(
            "kubectl", "exec", pod, "-n", release.namespace, "--", "python", "-c", f"open('{folder}/probe', 'w')"
        )
        assert "Read-only file system" in result.stderr, folder


def test_upgrade_to_more_models_fetches_them_and_keeps_serving(
    installed: tuple[Release, str], small: Callable[..., dict[str, Any]]
) -> None:
    release, _ = installed
    add = {"tiny-a": source_model("tiny-a.Q8_0.gguf"), "tiny-c": source_model("tiny-c.gguf")}
    release.apply(small(add))
    with release.served() as address:
        assert {model["id"] for model in httpx.get(f"{address}/v1/models", timeout=30).json()["data"]} == {"tiny-a", "tiny-c"}


def test_uninstall_leaves_nothing(installed: tuple[Release, str], kubernetes: Kubernetes) -> None:
    release, _ = installed
    release.uninstall()
    kinds = "deployment,replicaset,pod,service,configmap,secret,job,pvc,serviceaccount,networkpolicy,pdb,hpa,ingress"
    kubernetes.wait(
        lambda: not kubernetes.get(kinds, release.namespace, selector=release.selector), "all objects of the release to go", 120
    )
