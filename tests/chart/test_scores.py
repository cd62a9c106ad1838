"""What the usual scoring tools say of every way to install the chart: nothing."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import chart_tools
import go_binaries
from llama_wheel import ROOT
from support.chart import CHART, CI_VALUES, DIGEST, KUBE_VERSION, LIVE, STRATEGIES, UNDECLARED, Values, merged, render

CASES: dict[str, Values] = {
    **STRATEGIES,
    "pvc-without-models": {**UNDECLARED, "storage": {"strategy": "pvc"}},
    **{f"live-{name}": values for name, values in LIVE.items()},
    **{f"ci-{name}": values for name, values in CI_VALUES.items()},
}
DIGESTS: Values = {
    "image": {"server": {"digest": DIGEST}, "downloader": {"digest": DIGEST}},
    "storage": {"baked": {"image": {"digest": DIGEST}}},
}
# What kube-score advises against and these values want to see done.
WANTED = {"ci-everything": ["service-type", "horizontalpodautoscaler-replicas"]}
# The tags that the chart names by default have no published digest yet; with digests in the values the check passes.
NO_DIGEST_YET = "CKV_K8S_43"
# A test ends by itself and serves nobody, so it has no probes.
SKIPPED_BY_THE_TEST_POD = {"CKV_K8S_8", "CKV_K8S_9"}


def run(*command: str | Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=150, check=False)


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Returns what checkov says of all cases, each with tags and with digests: it takes seconds to start."""
    folder = tmp_path_factory.mktemp("manifests")
    for name, values in CASES.items():
        (folder / f"{name}.tags.yaml").write_text(render(values, kube_version=KUBE_VERSION).text)
        (folder / f"{name}.digests.yaml").write_text(render(merged(values, DIGESTS), kube_version=KUBE_VERSION).text)
    checkov = chart_tools.ensure() / "checkov"
    done = run(checkov, "-d", folder, "--framework", "kubernetes", "--skip-download", "--compact", "-o", "json")
    assert done.stdout.startswith("{"), done.stderr
    report = json.loads(done.stdout)
    assert report["summary"]["parsing_errors"] == 0
    assert report["summary"]["passed"] > 100 * len(CASES)
    results: dict[str, Any] = report["results"]
    return results


def found(findings: dict[str, Any], kind: str, file: str) -> list[str]:
    return [f"{check['check_id']} {check['resource']}" for check in findings[kind] if check["file_path"] == f"/{file}.yaml"]


@pytest.mark.parametrize("case", CASES)
def test_checkov_finds_nothing_but_tags(findings: dict[str, Any], case: str) -> None:
    failed = found(findings, "failed_checks", f"{case}.tags")
    assert [check for check in failed if not check.startswith(NO_DIGEST_YET)] == []


@pytest.mark.parametrize("case", CASES)
def test_checkov_finds_nothing_with_digests(findings: dict[str, Any], case: str) -> None:
    assert found(findings, "failed_checks", f"{case}.digests") == []


def test_checkov_skips_nothing_but_the_probes_of_the_test(findings: dict[str, Any]) -> None:
    skipped = {(check["check_id"], check["resource"]) for check in findings["skipped_checks"]}
    assert skipped == {(check, "Pod.models.r-nlocalmodels-test") for check in SKIPPED_BY_THE_TEST_POD}


@pytest.mark.parametrize("case", CASES)
def test_kube_score_has_no_warning(case: str) -> None:
    ignored = [part for name in WANTED.get(case, []) for part in ("--ignore-test", name)]
    options = ["--output-format", "ci", "--exit-one-on-warning", "--kubernetes-version", "v1.34", *ignored]
    done = run(
        go_binaries.ensure("kube-score"), "score", *options, "-", text=render(CASES[case], kube_version=KUBE_VERSION).text
    )
    advice = [line for line in done.stdout.splitlines() if not line.startswith(("[OK]", "[SKIPPED]"))]
    assert (done.returncode, advice) == (0, []), done.stderr
    assert done.stdout.count("[OK]") > 30


def test_yamllint_finds_nothing() -> None:
    files = [CHART / "values.yaml", CHART / "Chart.yaml", *CHART.glob("ci/*.yaml")]
    config = ROOT / ".github" / "lintconf.yaml"
    done = run(chart_tools.ensure() / "yamllint", "--strict", "--config-file", config, *files)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("helm", ["helm", "helm4"])
def test_helm_lint_finds_nothing(helm: str) -> None:
    done = run(go_binaries.ensure(helm), "lint", "--strict", CHART)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 chart(s) linted, 0 chart(s) failed" in done.stdout + done.stderr


def test_lock_names_no_index() -> None:
    text = chart_tools.LOCK.read_text()
    assert "://" not in text
    assert "--hash=sha256:" in text
