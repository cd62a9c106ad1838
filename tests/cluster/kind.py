"""Kubernetes in Docker, where a Docker engine answers."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import go_binaries
from cluster import images
from cluster.commands import run
from llama_wheel import cache_dir

NAME = "nlocalmodels"
NODE_CONTAINER = f"{NAME}-control-plane"
CONFIGURATION = {"kind": "Cluster", "apiVersion": "kind.x-k8s.io/v1alpha4", "featureGates": {"ImageVolume": True}}


def docker_answers() -> bool:
    if shutil.which("docker") is None:
        return False
    try:
        return subprocess.run(["docker", "info"], capture_output=True, timeout=15, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def kubeconfig_path() -> Path:
    return cache_dir() / "kind" / "kubeconfig"


def kind(*arguments: str | Path, stdin: str = "") -> str:
    return run(go_binaries.ensure("kind"), *arguments, "--name", NAME, stdin=stdin)


def exists() -> bool:
    return NAME in run(go_binaries.ensure("kind"), "get", "clusters").split()


def start() -> bool:
    """Creates the cluster unless it exists; returns whether it had to."""
    kubeconfig_path().parent.mkdir(parents=True, exist_ok=True)
    if exists():
        kind("export", "kubeconfig", "--kubeconfig", kubeconfig_path())
        return False
    image = ["--image", os.environ["KIND_NODE_IMAGE"]] if os.environ.get("KIND_NODE_IMAGE") else []
    options = ["--kubeconfig", str(kubeconfig_path()), "--wait", "180s", "--config", "-", *image]
    kind("create", "cluster", *options, stdin=json.dumps(CONFIGURATION))
    return True


def stop() -> bool:
    if not exists():
        return False
    kind("delete", "cluster", "--kubeconfig", kubeconfig_path())
    kubeconfig_path().unlink(missing_ok=True)
    return True


def load_images(archives: Sequence[Path]) -> None:
    for archive in archives:
        renamed = images.renamed_references(archive)
        kind("load", "image-archive", archive)
        for reference, name in renamed.items():
            run_on_node(shlex.join(["ctr", "--namespace", "k8s.io", "images", "tag", "--force", reference, name]))


def run_on_node(script: str) -> None:
    run("docker", "exec", NODE_CONTAINER, "sh", "-c", script)
