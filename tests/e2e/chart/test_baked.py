"""storage.strategy=baked: an image that `make bake` made from the same list, and nothing that fetches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.cluster import Cluster
from support.baked import BAKED_TAG, bake
from support.kubernetes import Release
from support.source_pod import SourcePod


@pytest.fixture(scope="module")
def installed(
    release: Callable[..., Release],
    small: Callable[..., dict[str, Any]],
    cluster: Cluster,
    repository: str,
    source: SourcePod,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Release]:
    archive: Path = tmp_path_factory.mktemp("baked") / "baked.tar"
    printed = bake(archive, repository)
    cluster.load_images([archive])
    source.reset()
    installed = release("baked")
    installed.apply({**small({}), **printed, "models": {**printed["models"], "default": "tiny-c"}})
    yield installed
    installed.uninstall()


def test_values_that_bake_prints_install_a_server_of_the_baked_models(installed: Release, source: SourcePod) -> None:
    (pod,) = installed.pods()
    assert "initContainers" not in pod["spec"]
    assert pod["spec"]["containers"][0]["image"].endswith(f":{BAKED_TAG}")
    with installed.served() as address:
        answer = httpx.post(f"{address}/v1/completions", json={"prompt": "abc", "max_tokens": 4}, timeout=60).json()
    assert (answer["model"], answer["usage"]["completion_tokens"]) == ("tiny-c", 4)
    assert source.requests() == []


def test_helm_test_asks_every_model(installed: Release) -> None:
    assert "Phase:          Succeeded" in installed.test()


def test_baked_set_is_the_one_that_the_chart_declares(installed: Release) -> None:
    (pod,) = installed.pods()
    declared = pod["metadata"]["annotations"]["nlocalmodels.io/set"]
    script = "import os; print(os.listdir('/app/models/.nlocalmodels/sets'))"
    listed = installed.kubernetes.kubectl(
        "exec", pod["metadata"]["name"], "-n", installed.namespace, "--", "python", "-c", script
    )
    assert listed.strip() == f"['{declared}.json']"
