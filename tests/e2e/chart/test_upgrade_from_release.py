"""A release of the chart before this one: `helm upgrade --reuse-values`, live reload from then on, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from support.kubernetes import Release, notes
from support.released_chart import released_chart
from support.source_pod import SourcePod, source_model

Values = dict[str, Any]


def uids(release: Release) -> set[str]:
    return {pod["metadata"]["uid"] for pod in release.pods()}


def test_user_upgrades_with_reuse_values_turns_to_live_reload_and_goes_back(
    release: Callable[..., Release],
    small: Callable[..., Values],
    storage_class: Callable[[], str],
    source: SourcePod,
) -> None:
    source.reset()
    old = release("old")
    pvc = {"size": "1Gi", "storageClass": storage_class(), "keepOnUninstall": False}
    # The server plans with 400 MiB beside the weights, whatever the chart is told of `memory`.
    add = {"tiny-a": source_model("tiny-a.Q8_0.gguf", memory="512Mi")}
    old.apply(small(add, storage={"strategy": "pvc", "pvc": pvc}), chart=released_chart())
    before = uids(old)
    source.reset()

    printed = notes(old.apply({}, "--reuse-values"))
    assert "This upgrade leaves the models as they are." in printed
    assert uids(old) == before, "an upgrade that changes no value has replaced pods"

    live = {"models": {"reload": "live"}, "resources": {"requests": {"memory": "256Mi"}, "limits": {"memory": "4Gi"}}}
    old.apply(live, "--reuse-values")
    live_pods = uids(old)
    assert live_pods.isdisjoint(before)
    more = {"models": {"add": {"tiny-c": {"memory": "256Mi", **source_model("tiny-c.gguf")}}}}
    # Said before it is done.
    planned = notes(old.apply(more, "--reuse-values", "--dry-run=server"))
    assert "This upgrade changes the models:" in planned
    assert source.requests() == []
    printed = notes(old.apply(more, "--reuse-values"))
    assert printed == planned
    assert [line.split()[:2] for line in printed.splitlines() if line.startswith(("  added", "  unchanged"))] == [
        ["added", "tiny-c"],
        ["unchanged", "tiny-a"],
    ]
    assert "To fetch: 0 MiB, and what the former set still lacks." in printed
    # Asks every model, once the running pods have taken the set up.
    tested = old.test()
    assert "Phase:          Succeeded" in tested
    assert "added      tiny-c" in tested
    assert "2 models served, 2 declared, 0 problems" in tested
    assert uids(old) == live_pods
    assert {request["path"] for request in source.requests()} == {"/tiny-c.gguf"}
    source.reset()

    # To the first revision, of the chart before.
    old.rollback("1")
    (pod,) = old.pods()
    assert [variable["name"] for variable in pod["spec"]["containers"][0]["env"]][1] == "DEFAULT_MODEL"
    assert source.requests() == []
    old.uninstall()
