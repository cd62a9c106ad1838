"""Both major versions of Helm render the same."""

from __future__ import annotations

import pytest

from support.chart import CI_VALUES, KUBE_VERSION, LIVE, STRATEGIES, Values, render

CASES = {
    **{f"default {name}": values for name, values in STRATEGIES.items()},
    **{f"live {name}": values for name, values in LIVE.items()},
    **{f"ci {name}": v for name, v in CI_VALUES.items()},
}


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_helm_3_and_4_render_the_same(values: Values) -> None:
    three, four = (render(values, kube_version=KUBE_VERSION, helm=helm) for helm in ("helm", "helm4"))
    identities = [sorted(f"{d['kind']}/{d['metadata']['name']}" for d in manifests.documents) for manifests in (three, four)]
    assert identities[0] == identities[1]
    for document in three.documents:
        assert four.one(document["kind"], document["metadata"]["name"]) == document


def test_every_strategy_has_values_for_chart_testing() -> None:
    tested = {values.get("storage", {}).get("strategy", "emptyDir") for values in CI_VALUES.values()}
    assert tested == {"emptyDir", "pvc", "baked"}
