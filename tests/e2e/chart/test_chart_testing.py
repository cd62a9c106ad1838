"""chart-testing as a chart repository runs it: `ct lint`, and `ct install` with every ci/*-values.yaml."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import chart_tools
from cluster.cluster import Cluster
from support import gateway
from support.baked import bake
from support.kubernetes import CHART, ROOT, Kubernetes
from support.source_image import source_index
from support.source_pod import SourcePod


@pytest.fixture
def ct(kubernetes: Kubernetes) -> Callable[..., str]:
    """Runs ct with its linters on the path, and returns what it printed."""
    environ = {**kubernetes.environ, "PATH": f"{chart_tools.ensure()}{os.pathsep}{kubernetes.environ['PATH']}"}

    def run(*arguments: str) -> str:
        result = subprocess.run(
            ["ct", *arguments, "--config", "ct.yaml"],
            cwd=ROOT,
            env=environ,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=1200,
        )
        assert result.returncode == 0, result.stdout
        return result.stdout

    return run


def test_ct_lint(ct: Callable[..., str]) -> None:
    assert "All charts linted successfully" in ct("lint")


@pytest.mark.timeout(1500)
def test_ct_install_with_every_ci_file(
    ct: Callable[..., str],
    cluster: Cluster,
    kubernetes: Kubernetes,
    namespace: str,
    source: SourcePod,
    storage_class: Callable[[], str],
    repository: str,
    tmp_path: Path,
) -> None:
    source.reset()
    storage_class()
    archive = tmp_path / "baked.tar"
    bake(archive, repository)
    cluster.load_images([archive])
    local = [f"--set=image.{image}.pullPolicy=IfNotPresent" for image in ("server", "downloader")]
    with gateway.installed(kubernetes):
        printed = ct("install", "--namespace", namespace, f"--helm-extra-set-args={' '.join(local)}")
    for file in sorted((CHART / "ci").glob("*-values.yaml")):
        assert file.name in printed
    assert "All charts installed successfully" in printed


def test_ci_files_declare_the_files_that_the_source_has() -> None:
    text = "".join(path.read_text() for path in (CHART / "ci").glob("*-values.yaml"))
    for file, facts in source_index().items():
        if file in text:
            assert facts["sha256"] in text, f"{file} has changed: its sha256 is {facts['sha256']} now"
