"""The API server's own judgement: it takes every object of every strategy, and Pod Security finds nothing to warn of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from support import gateway
from support.chart import LIVE
from support.kubernetes import CHART, Kubernetes

IMAGE = {"repository": "example.com/models", "tag": "1"}
STRATEGIES: dict[str, tuple[dict[str, Any], str]] = {
    "emptyDir": ({}, "1.34"),
    "pvc": ({"storage": {"strategy": "pvc", "pvc": {"uploader": {"enabled": True}}}}, "1.34"),
    "baked": ({"storage": {"strategy": "baked", "baked": {"image": IMAGE}}}, "1.34"),
    **{f"live {strategy}": (values, "1.34") for strategy, values in LIVE.items()},
    "image volume": ({"storage": {"strategy": "baked", "baked": {"image": IMAGE, "mount": "volume"}}}, "1.35"),
}


def admitted(kubernetes: Kubernetes, namespace: str, values: Path, kube_version: str = "1.34") -> None:
    rendered = kubernetes.run("helm", "template", "r", CHART, "-n", namespace, "-f", values, "--kube-version", kube_version)
    assert rendered.returncode == 0, rendered.stderr
    # A pod of its own, as the chart's test is, is refused where its ServiceAccount is not there.
    kubernetes.run("kubectl", "create", "serviceaccount", "r-nlocalmodels", "-n", namespace, "--save-config")
    result = kubernetes.run("kubectl", "apply", "--dry-run=server", "-n", namespace, "-f", "-", stdin=rendered.stdout)
    assert (result.returncode, result.stderr) == (0, "")
    assert "deployment.apps" in result.stdout


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategy_is_admitted_without_a_warning(strategy: str, kubernetes: Kubernetes, namespace: str, tmp_path: Path) -> None:
    values, kube_version = STRATEGIES[strategy]
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    admitted(kubernetes, namespace, file, kube_version)


@pytest.mark.parametrize("file", sorted((CHART / "ci").glob("*-values.yaml")), ids=lambda path: path.stem)
def test_ci_values_are_admitted_without_a_warning(file: Path, kubernetes: Kubernetes, namespace: str) -> None:
    with gateway.installed(kubernetes):
        admitted(kubernetes, namespace, file)
