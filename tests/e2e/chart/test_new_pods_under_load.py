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


@contextlib.contextmanager
def used(release: Release, values: Values, repository: str) -> Iterator[tuple[Release, Load]]:
    """Installs a release and puts load on it; at the end not a request may have failed."""
    release.apply(values)
    try:
        address = f"{release.fullname}.{release.namespace}.svc.cluster.local:11434"
        image = f"{repository}:nLocalModels"
        with under_load(release.kubernetes, release.namespace, image, address, ["kept"]) as load:
            yield release, load
    finally:
        release.uninstall()
    assert load.failures == []
    assert load.answers["kept"] > 100


# The tests of each leave the set behind that they found.
@pytest.fixture(scope="module")
def fleeting(
    release: Callable[..., Release], own_volumes: Values, repository: str, source: SourcePod
) -> Iterator[tuple[Release, Load]]:
    source.reset()
    with used(release("fleeting"), own_volumes, repository) as release_and_load:
        yield release_and_load


@pytest.fixture(scope="module")
def baked(
    release: Callable[..., Release], images: list[Values], repository: str, source: SourcePod
) -> Iterator[tuple[Release, Load]]:
    source.reset()
    with used(release("images"), images[0], repository) as release_and_load:
        yield release_and_load


@pytest.fixture(autouse=True)
def unharmed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Says which test it was that cost a request."""
    yield
    for name in {"fleeting", "baked"} & set(request.fixturenames):
        _, load = request.getfixturevalue(name)
        load.settle()
        assert load.so_far()[1] == []


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


def declared(release: Release) -> set[str]:
    return {pod["metadata"]["annotations"]["nlocalmodels.io/set"] for pod in release.pods()}


def served(release: Release) -> set[str]:
    return {body["set"] for body in release.readiness().values()}


def test_user_changes_the_set_of_pods_with_volumes_of_their_own_and_rolls_back(
    fleeting: tuple[Release, Load], own_volumes: Values, source: SourcePod
) -> None:
    release, _ = fleeting
    source.reset()
    add = {**own_volumes["models"]["add"], "more": {"memory": "256Mi", **source_model("tiny-c.gguf")}}
    del add["other"]
    printed = release.apply({**own_volumes, "models": {"set": "none", "add": add}})
    assert "Each new pod fetches all of them" in printed
    assert {request["path"] for request in source.requests()} == {"/tiny-a.Q8_0.gguf", "/tiny-c.gguf"}
    release.rollback()


def test_user_upgrades_pods_with_volumes_of_their_own_to_a_set_that_cannot_be_fetched(
    fleeting: tuple[Release, Load], own_volumes: Values, kubernetes: Kubernetes
) -> None:
    release, load = fleeting
    more = {"memory": "256Mi", **source_model("tiny-c.gguf"), "sha256": "0" * 64}
    broken = {"set": "none", "add": {**own_volumes["models"]["add"], "more": more}}
    release.apply({**own_volumes, "models": broken}, wait=False)
    end = kubernetes.wait(lambda: ended(release, "initContainerStatuses"), "the init container to say why")
    assert (end["exitCode"], end["message"].partition(":")[0]) == (13, "more")
    load.settle()
    release.rollback()


def test_image_whose_models_are_not_the_declared_ones_is_refused(
    baked: tuple[Release, Load], images: list[Values], kubernetes: Kubernetes
) -> None:
    """The new values, and the old image by mistake."""
    release, load = baked
    release.apply({**images[1], "storage": images[0]["storage"]}, wait=False)
    end = kubernetes.wait(lambda: ended(release, "containerStatuses"), "the new pod to say why")
    assert end["exitCode"] == 2
    assert "does not hold the declared set" in end["message"]
    assert "chat-d.gguf" in end["message"]
    load.settle()
    release.rollback()


def test_user_rolls_to_an_image_with_other_models_and_back(
    baked: tuple[Release, Load], images: list[Values], source: SourcePod
) -> None:
    release, _ = baked
    source.reset()
    printed = release.apply(images[1])
    assert "All of them come with the image; nothing is fetched." in printed
    assert served(release) == declared(release)
    before = declared(release)
    release.rollback()
    assert served(release) == declared(release) != before
    assert source.requests() == []
