"""The pinned Go programs."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

import go_binaries


def test_one_version_of_kubernetes_everywhere() -> None:
    text = (go_binaries.KUBERNETES_MODULE / "go.mod").read_text()
    minor_and_patch = go_binaries.KUBERNETES_VERSION.removeprefix("v1.")
    assert re.findall(r"^require k8s.io/kubernetes (\S+)$", text, re.MULTILINE) == [go_binaries.KUBERNETES_VERSION]
    assert set(re.findall(r"^\tk8s\.io/\S+ => k8s\.io/\S+ (\S+)$", text, re.MULTILINE)) == {f"v0.{minor_and_patch}"}
    stamps = go_binaries.BUILD_BY_PROGRAM["kubelet"].stamps
    assert stamps["k8s.io/component-base/version.gitMinor"] == minor_and_patch.partition(".")[0]


def test_each_kubernetes_program_is_a_tool_of_the_module() -> None:
    text = (go_binaries.KUBERNETES_MODULE / "go.mod").read_text()
    for package in go_binaries.BUILD_BY_PROGRAM["kubectl"].packages:
        assert re.search(rf"^\t{package}$", text, re.MULTILINE), package


def test_what_changes_the_bytes_changes_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NLOCALMODELS_CACHE", str(tmp_path))
    build = go_binaries.BUILD_BY_PROGRAM["helm"]
    stamped = dataclasses.replace(build, stamps={})
    newer = dataclasses.replace(build, version="v3.99.0")
    assert len({build.directory(), stamped.directory(), newer.directory()}) == 3


def test_cached_program_is_not_built_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NLOCALMODELS_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    cached = go_binaries.BUILD_BY_PROGRAM["helm4"].directory() / "helm"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"")
    assert go_binaries.ensure("helm4") == cached
    with pytest.raises(SystemExit, match="needs Go"):
        go_binaries.ensure("ct")
