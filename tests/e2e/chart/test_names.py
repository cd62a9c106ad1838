"""Releases that are awkward: a name as long as Helm allows, two in one namespace, one by Helm 4."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from support.kubernetes import Release
from support.source_pod import SourcePod, source_model

LONG = "a-release-whose-name-has-all-53-characters-helm-takes"


def test_two_releases_share_a_namespace_one_of_them_with_53_characters(
    release: Callable[..., Release], small: Callable[..., dict[str, Any]], source: SourcePod
) -> None:
    assert len(LONG) == 53
    first, second = release(LONG), release("other", helm="helm4")
    first.apply(small({"tiny-a": source_model("tiny-a.Q8_0.gguf")}))
    second.apply(small({"tiny-b": source_model("tiny-b.F16.gguf")}))
    for installed, model in ((first, "tiny-a"), (second, "tiny-b")):
        with installed.served() as address:
            served = httpx.get(f"{address}/v1/models", timeout=30).json()["data"]
        assert [entry["id"] for entry in served] == [model]
        assert "Succeeded" in installed.test()
        installed.uninstall()
