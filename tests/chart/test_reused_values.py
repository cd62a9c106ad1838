"""`helm upgrade --reuse-values`: the templates get the values of the release before, without the keys that came since."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.chart import CHART, CI_VALUES, KUBE_VERSION, STRATEGIES, Values, merged, render, walk
from support.released_chart import released_chart

CASES = {**STRATEGIES, **{f"ci {name}": values for name, values in CI_VALUES.items() if name != "live"}}


def defaults(chart: Path) -> dict[tuple[str, ...], Any]:
    return dict(walk(yaml.safe_load((chart / "values.yaml").read_text())))


# What the release has another default for, which whoever reuses his values keeps.
OTHERS: Values = merged(
    *(
        functools.reduce(lambda inner, key: {key: inner}, reversed(path), value)
        for path, value in defaults(released_chart()).items()
        if path in defaults(CHART) and defaults(CHART)[path] != value
    )
)


@pytest.fixture(scope="module")
def reusing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart with the values of the release before in place of its own, as Helm puts them there."""
    chart = tmp_path_factory.mktemp("reusing") / CHART.name
    shutil.copytree(CHART, chart)
    shutil.copy(released_chart() / "values.yaml", chart / "values.yaml")
    return chart


def test_some_key_is_new() -> None:
    assert ("models", "reload") in defaults(CHART).keys() - defaults(released_chart()).keys()


def test_no_key_of_the_release_is_refused_now() -> None:
    assert defaults(released_chart()).keys() - defaults(CHART).keys() == set()


@pytest.mark.parametrize("case", CASES)
def test_keys_that_are_new_have_their_defaults(reusing: Path, case: str) -> None:
    values = CASES[case]
    told = merged(OTHERS, values)
    assert render(values, kube_version=KUBE_VERSION, chart=reusing).text == render(told, kube_version=KUBE_VERSION).text


@pytest.mark.parametrize("strategy", ["emptyDir", "pvc"])
def test_upgrade_restarts_no_pod(reusing: Path, strategy: str) -> None:
    """Whoever changes nothing of his values reads no gigabytes again."""

    def template(chart: Path) -> Values:
        found: Values = render(STRATEGIES[strategy], chart=chart).one("Deployment")["spec"]["template"]
        return found

    assert template(reusing) == template(released_chart())
