"""The chart on a real cluster: the cluster, the images, the models' source, and a namespace for each test file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import yaml

import images as image_builder
from cluster import layout
from cluster.cluster import EXISTING, Cluster, ensure_cluster, is_running, stop_cluster
from support import source_pod
from support.kubernetes import Kubernetes, Release
from support.source_pod import SourcePod

RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "e2e/chart" in str(item.path):
            # A download, a rollout and a test of it take longer than a unit test on a small machine.
            item.add_marker(pytest.mark.timeout(900))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Lets fixtures see whether the test has failed."""
    report = yield
    if report.when == "call" and report.failed:
        item.session.stash.setdefault(FAILED, []).append(item.nodeid)
    return report


FAILED = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def aloud(pytestconfig: pytest.Config) -> Callable[[], AbstractContextManager[None]]:
    """Lets a person see what takes so long: within the block, what is printed is not captured."""
    capture = pytestconfig.pluginmanager.get_plugin("capturemanager")
    return capture.global_and_fixture_disabled if capture is not None else nullcontext


@pytest.fixture(scope="session")
def cluster(aloud: Callable[[], AbstractContextManager[None]]) -> Iterator[Cluster]:
    """A cluster with the images in it. One that was started for the tests ends with them."""
    was_there = is_running()
    with aloud():
        print("\n[e2e] preparing a cluster", flush=True)
        if not was_there:
            # What a run that was killed has left holds releases that are half installed.
            stop_cluster()
        cluster = ensure_cluster()
        if cluster.provider != EXISTING:
            print("[e2e] preparing the images", flush=True)
            cluster.load_images(list(image_builder.ensure_images(["server", "downloader", "source"]).values()))
    yield cluster
    if not was_there:
        with aloud():
            print("\n[e2e] removing the cluster", flush=True)
            stop_cluster()


@pytest.fixture(scope="session")
def kubernetes(cluster: Cluster) -> Kubernetes:
    return Kubernetes(cluster.kubeconfig)


@pytest.fixture(scope="session")
def kube_config(cluster: Cluster) -> str:
    """What pytest-helm-charts connects by."""
    return str(cluster.kubeconfig)


@pytest.fixture(scope="session")
def repository() -> str:
    """Where the cluster finds the images. An existing cluster pulls them from the registry that E2E_REGISTRY names."""
    registry = os.environ.get("E2E_REGISTRY")
    return f"{registry}/nservices" if registry else "plturrell/nservices"


@pytest.fixture(scope="session")
def source(kubernetes: Kubernetes, repository: str) -> Iterator[SourcePod]:
    """The models' source in the cluster."""
    with source_pod.deployed(kubernetes, f"{repository}:test-source") as source:
        yield source


@pytest.fixture(scope="session")
def storage_class(cluster: Cluster) -> Callable[[], str]:
    """Returns a class with room for ReadWriteMany claims."""

    def ensure() -> str:
        if cluster.provider == EXISTING:
            return os.environ["E2E_RWX_STORAGE_CLASS"]
        cluster.create_rwx_volumes(3)
        return layout.STORAGE_CLASS

    return ensure


@pytest.fixture(scope="module")
def namespace(request: pytest.FixtureRequest, kubernetes: Kubernetes) -> Iterator[str]:
    """A namespace of the test file's own, in which Pod Security `restricted` is enforced. A failure tells what is in it."""
    name = request.path.stem.replace("test_", "e2e-").replace("_", "-")
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}}
    kubernetes.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(manifest))
    yield name
    if any(request.path.name in failed for failed in request.session.stash.get(FAILED, [])):
        for command in (["get", "all,pvc"], ["describe", "pods"], ["get", "events", "--sort-by=.lastTimestamp"]):
            print(kubernetes.run("kubectl", *command, "-n", name).stdout)
        for pod in kubernetes.get("pod", name):
            print(kubernetes.run("kubectl", "logs", pod["metadata"]["name"], "-n", name, "--all-containers", "--prefix").stdout)
    kubernetes.kubectl("delete", "namespace", name, "--wait=true", "--timeout=180s")


@pytest.fixture(scope="module")
def release(kubernetes: Kubernetes, namespace: str) -> Callable[..., Release]:
    """Returns a release by its name, yet to be installed."""

    def named(name: str, helm: str = "helm") -> Release:
        return Release(kubernetes, name, namespace, helm)

    return named


@pytest.fixture(scope="session")
def small(repository: str) -> Callable[..., dict[str, Any]]:
    """Returns values for a small node, with the models given: models.add by id, or whole values."""

    def values(add: dict[str, Any], **more: Any) -> dict[str, Any]:
        image = {"repository": repository, "pullPolicy": "IfNotPresent"}
        return {
            "models": {"set": "none", "add": {name: {"memory": "256Mi", **model} for name, model in add.items()}},
            "image": {"server": image, "downloader": image},
            "replicas": 1,
            "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "2"}},
            "server": {"preStopSeconds": 1},
            **more,
        }

    return values
