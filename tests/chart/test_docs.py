"""What a user reads: the chart's README, its notes after an installation, and what Chart.yaml promises."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import go_binaries
from support.chart import CHART, KUBE_VERSION, STRATEGIES, UNDECLARED, Values, included, merged, only, own, render, walk


def notes(values: Values) -> str:
    return included("notes", values, kube_version=KUBE_VERSION)


def test_readme_is_what_helm_docs_makes_of_the_values(tmp_path: Path) -> None:
    shutil.copytree(CHART, tmp_path / CHART.name)
    command = [str(go_binaries.ensure("helm-docs")), "--chart-search-root", ".", "--sort-values-order", "file"]
    subprocess.run([*command, "--log-level", "warning"], cwd=tmp_path, timeout=60, check=True)
    assert (CHART / "README.md").read_text() == (tmp_path / CHART.name / "README.md").read_text(), "run make docs"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_notes_say_where_the_models_are_and_how_to_go_on(strategy: str) -> None:
    text = notes(STRATEGIES[strategy])
    assert text.startswith(f"Storage: {strategy.removesuffix('-volume')}. ")
    for expected in (
        "kubectl rollout status -n models deployment/r-nlocalmodels --timeout=",
        "kubectl port-forward -n models service/r-nlocalmodels 11434:11434",
        '"model": "llama-2-7b-chat"',
        "helm test -n models r",
        "5.4 GiB to fetch",
    ):
        assert expected in text
    assert "<no value>" not in text
    assert "\n\n\n" not in text


def test_notes_name_the_job_and_the_uploader() -> None:
    manifests = render(STRATEGIES["pvc"], kube_version=KUBE_VERSION)
    fetches = next(job["metadata"]["name"] for job in manifests.all("Job") if job["metadata"]["name"] != "model-uploader")
    text = notes(STRATEGIES["pvc"])
    assert f"kubectl logs -n models job/{fetches} -f" in text
    assert "kubectl wait -n models --for=condition=complete job/model-uploader" in text


def test_notes_of_a_claim_that_nothing_is_fetched_to() -> None:
    text = notes({**UNDECLARED, "storage": {"strategy": "pvc"}})
    assert "nothing is fetched" in text
    assert "job/" not in text


def test_notes_warn() -> None:
    values = merged(only(m=own()), {"models": {"allowUnverified": True}, "ingress": {"enabled": True}, "replicas": 3})
    text = notes(values)
    assert "not verified" in text
    assert "asks nobody who they are" in text
    assert "3 pods each fetch 1.0 GiB" in text


def test_readme_names_no_value_that_does_not_exist() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    known = {".".join(path[:length]) for path, _ in walk(values) for length in range(1, len(path) + 1)}
    prose = (CHART / "README.md.gotmpl").read_text()
    named = [path for path in re.findall(r"`([a-z][A-Za-z]+(?:\.[A-Za-z]+)+)[`=:]", prose) if path.split(".")[0] in values]
    assert len(named) > 5
    assert [path for path in named if path not in known] == []
