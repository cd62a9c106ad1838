"""`helm upgrade --reuse-values`: the templates get the values of the release before, without the keys that came since."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from support.chart import CHART, CI_VALUES, KUBE_VERSION, STRATEGIES, Values, render, walk
from support.released_chart import released_chart

CASES = {**STRATEGIES, **{f"ci {name}": values for name, values in CI_VALUES.items() if name != "live"}}


def keys(chart: Path) -> set[str]:
    return {".".join(path) for path, _ in walk(yaml.safe_load((chart / "values.yaml").read_text()))}


@pytest.fixture(scope="module")
def reusing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart with the values of the release before in place of its own, as Helm puts them there."""
    chart = tmp_path_factory.mktemp("reusing") / CHART.name
    shutil.copytree(CHART, chart)
    shutil.copy(released_chart() / "values.yaml", chart / "values.yaml")
    return chart


def test_some_key_is_new() -> None:
    assert "models.reload" in keys(CHART) - keys(released_chart())


def test_no_key_of_the_release_is_refused_now() -> None:
    assert keys(released_chart()) - keys(CHART) == set()


@pytest.mark.parametrize("case", CASES)
def test_keys_that_are_new_have_their_defaults(reusing: Path, case: str) -> None:
    values = CASES[case]
    assert render(values, kube_version=KUBE_VERSION, chart=reusing).text == render(values, kube_version=KUBE_VERSION).text


@pytest.mark.parametrize("strategy", ["emptyDir", "pvc"])
def test_upgrade_restarts_no_pod(strategy: str) -> None:
    """Whoever changes nothing of his values reads no gigabytes again."""

    def template(chart: Path) -> Values:
        found: Values = render(STRATEGIES[strategy], chart=chart).one("Deployment")["spec"]["template"]
        return found

    assert template(CHART) == template(released_chart())
