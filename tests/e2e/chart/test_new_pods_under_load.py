"""Pods that bring their models with them, by emptyDir or baked: a changed set is a rolling update, and not a request fails."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.cluster import Cluster
from support.baked import bake
from support.kubernetes import Kubernetes, Release
from support.load import Load, under_load
from support.source_pod import SourcePod, source_model

Values = dict[str, Any]

SIZE_BYTES = 467_680
# As long a pause before a pod stops as the chart has by default; the rest is small.
SERVER: Values = {"replicas": 2, "server": {"preStopSeconds": 10, "graceSeconds": 20}}


@pytest.fixture(scope="module")
def own_volumes(small: Callable[..., Values]) -> Values:
    add = {"kept": source_model("tiny-a.Q8_0.gguf", file="kept.gguf"), "other": source_model("tiny-b.F16.gguf")}
    return small(add, **SERVER)


@pytest.fixture(scope="module")
def images(
    cluster: Cluster, small: Callable[..., Values], repository: str, tmp_path_factory: pytest.TempPathFactory
) -> list[Values]:
    """Values for two images: the second has a model more, and another file for one of the first's models."""
    folder = tmp_path_factory.mktemp("baked")
    files: list[dict[str, str]] = [
        {"kept": "tiny-a.Q8_0.gguf", "other": "tiny-b.F16.gguf"},
        {"kept": "tiny-a.Q8_0.gguf", "more": "chat-d.gguf", "other": "tiny-c.gguf"},
    ]
    values = []
    for number, of_image in enumerate(files):
        archive: Path = folder / f"{number}.tar"
        printed = bake(archive, repository, f"test-baked-{number}", of_image)
        cluster.load_images([archive])
        archive.unlink()
        values.append({**small({}), **SERVER, **printed})
    return values


@pytest.fixture
def load(kubernetes: Kubernetes, repository: str) -> Iterator[Callable[[Release, Values], Load]]:
    """Installs a release and puts load on it until the test ends; not a request may have failed then."""
    with contextlib.ExitStack() as stack:
        loads: list[Load] = []

        def begin(release: Release, values: Values) -> Load:
            stack.callback(release.uninstall)
            release.apply(values)
            address = f"{release.fullname}.{release.namespace}.svc.cluster.local:11434"
            image = f"{repository}:nLocalModels"
            loads.append(stack.enter_context(under_load(kubernetes, release.namespace, image, address, ["kept"])))
            return loads[0]

        yield begin
    assert loads[0].failures == []
    assert loads[0].answers["kept"] > 50


def newest(release: Release) -> Any:
    """Returns the pod that was made last."""
    return max(release.pods(), key=lambda pod: str(pod["metadata"]["creationTimestamp"]))


def ended(release: Release, kind: str) -> Any:
    """Returns how a container of the newest pod ended for the first time, None if it has not."""
    for status in newest(release)["status"].get(kind, []):
        for state in (status["state"], status["lastState"]):
            if "terminated" in state and state["terminated"]["exitCode"]:
                return state["terminated"]
    return None


def test_user_changes_the_set_of_pods_with_volumes_of_their_own_and_rolls_back(
    release: Callable[..., Release], load: Callable[[Release, Values], Load], own_volumes: Values, source: SourcePod
) -> None:
    fleeting = release("fleeting")
    load(fleeting, own_volumes)
    source.reset()
    add = {**own_volumes["models"]["add"], "more": {"memory": "256Mi", **source_model("tiny-c.gguf")}}
    del add["other"]
    printed = fleeting.apply({**own_volumes, "models": {"set": "none", "add": add}})
    assert "Each new pod fetches all of them" in printed
    assert {request["path"] for request in source.requests()} == {"/tiny-a.Q8_0.gguf", "/tiny-c.gguf"}
    fleeting.rollback()


def test_user_upgrades_pods_with_volumes_of_their_own_to_a_set_that_cannot_be_fetched(
    release: Callable[..., Release],
    load: Callable[[Release, Values], Load],
    own_volumes: Values,
    source: SourcePod,
    kubernetes: Kubernetes,
) -> None:
    source.reset()
    fleeting = release("fleeting")
    of_load = load(fleeting, own_volumes)
    more = {"memory": "256Mi", **source_model("tiny-c.gguf"), "sha256": "0" * 64}
    broken = {"set": "none", "add": {**own_volumes["models"]["add"], "more": more}}
    fleeting.apply({**own_volumes, "models": broken}, wait=False)
    end = kubernetes.wait(lambda: ended(fleeting, "initContainerStatuses"), "the init container to say why")
    assert (end["exitCode"], end["message"].partition(":")[0]) == (13, "more")
    of_load.settle()
    fleeting.rollback()


def test_user_rolls_to_an_image_with_other_models_and_back(
    release: Callable[..., Release], load: Callable[[Release, Values], Load], images: list[Values], source: SourcePod
) -> None:
    source.reset()
    baked = release("images")
    load(baked, images[0])
    printed = baked.apply(images[1])
    assert "All of them come with the image; nothing is fetched." in printed
    assert {body["set"] for body in baked.readiness().values()} == set(declared(baked))
    baked.rollback()
    assert source.requests() == []


def declared(release: Release) -> list[str]:
    return [pod["metadata"]["annotations"]["nlocalmodels.io/set"] for pod in release.pods()]


def test_image_whose_models_are_not_the_declared_ones_is_refused(
    release: Callable[..., Release], load: Callable[[Release, Values], Load], images: list[Values], kubernetes: Kubernetes
) -> None:
    """The new values, and the old image by mistake."""
    baked = release("images")
    of_load = load(baked, images[0])
    baked.apply({**images[1], "storage": images[0]["storage"]}, wait=False)
    end = kubernetes.wait(lambda: ended(baked, "containerStatuses"), "the new pod to say why")
    assert end["exitCode"] == 2
    assert "does not hold the declared set" in end["message"]
    assert "chat-d.gguf" in end["message"]
    of_load.settle()
    # The image that belongs to the values.
    baked.apply(images[1])
    assert {body["set"] for body in baked.readiness().values()} == set(declared(baked))
