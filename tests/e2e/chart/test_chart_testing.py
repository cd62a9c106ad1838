"""chart-testing as a chart repository runs it: `ct lint`, and `ct install` with every ci/*-values.yaml."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import chart_tools
from cluster.cluster import Cluster
from support import gateway
from support.baked import bake
from support.kubernetes import CHART, ROOT, Kubernetes
from support.released_chart import released_chart
from support.source_image import source_index
from support.source_pod import SourcePod

LOCAL_IMAGES = "--helm-extra-set-args=" + " ".join(
    f"--set=image.{image}.pullPolicy=IfNotPresent" for image in ("server", "downloader")
)


@pytest.fixture
def ct(kubernetes: Kubernetes) -> Callable[..., str]:
    """Runs ct with its linters on the path, and returns what it printed."""
    environ = {**kubernetes.environ, "PATH": f"{chart_tools.ensure()}{os.pathsep}{kubernetes.environ['PATH']}"}

    def run(*arguments: str, folder: Path = ROOT) -> str:
        result = subprocess.run(
            ["ct", *arguments, "--config", "ct.yaml"],
            cwd=folder,
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
    with gateway.installed(kubernetes):
        printed = ct("install", "--namespace", namespace, LOCAL_IMAGES)
    for file in sorted((CHART / "ci").glob("*-values.yaml")):
        assert file.name in printed
    assert "All charts installed successfully" in printed


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in which the released chart is on the remote's main branch, and this one comes after it."""
    folder = tmp_path / "checkout"
    git = ("git", "-c", "user.name=ct", "-c", "user.email=ct@example.com", "-C", str(folder))

    def commit(chart: Path) -> None:
        shutil.rmtree(folder / "charts", ignore_errors=True)
        shutil.copytree(chart, folder / "charts" / CHART.name, ignore=shutil.ignore_patterns("ci"))
        (folder / "charts" / CHART.name / "ci").mkdir()
        # One strategy is enough here: each file is installed three times and upgraded twice.
        shutil.copy(CHART / "ci" / "pvc-values.yaml", folder / "charts" / CHART.name / "ci")
        for words in (["add", "--all"], ["commit", "--quiet", "--message", "chart"]):
            subprocess.run([*git, *words], check=True, timeout=60)

    subprocess.run(["git", "init", "--quiet", str(folder)], check=True, timeout=60)
    shutil.copy(ROOT / "ct.yaml", folder)
    shutil.copytree(ROOT / ".github", folder / ".github")
    commit(released_chart())
    subprocess.run([*git, "update-ref", "refs/remotes/origin/main", "HEAD"], check=True, timeout=60)
    subprocess.run([*git, "remote", "add", "origin", str(folder)], check=True, timeout=60)
    commit(CHART)
    return folder


def test_ct_upgrades_from_the_released_chart_and_from_this_one(
    ct: Callable[..., str], namespace: str, source: SourcePod, storage_class: Callable[[], str], checkout: Path
) -> None:
    source.reset()
    storage_class()
    printed = ct("install", "--upgrade", "--namespace", namespace, LOCAL_IMAGES, folder=checkout)
    # Once from the chart of the previous revision, once from itself.
    assert printed.count("Testing upgrades of chart") == 2
    assert "skipped" not in printed
    assert "All charts installed successfully" in printed


def test_ci_files_declare_the_files_that_the_source_has() -> None:
    text = "".join(path.read_text() for path in (CHART / "ci").glob("*-values.yaml"))
    for file, facts in source_index().items():
        if file in text:
            assert facts["sha256"] in text, f"{file} has changed: its sha256 is {facts['sha256']} now"
