"""Debian's packages that give the programs the cluster is made with; those that are missing are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable

from cluster import layout
from cluster.commands import ClusterError, direct_environ

PACKAGES = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "etcd": "etcd-server",
    str(layout.CNI_PLUGINS / "bridge"): "containernetworking-plugins",
    "iptables": "iptables",
    "ip": "iproute2",
    "openssl": "openssl",
    "gcc": "build-essential",
    # What makes images where there is no Docker.
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
}
NODE_PROGRAMS = ("containerd", "ctr", "runc", "etcd", str(layout.CNI_PLUGINS / "bridge"), "iptables", "ip", "openssl", "gcc")


def missing_packages(programs: Iterable[str]) -> list[str]:
    path = direct_environ()["PATH"]
    return sorted({PACKAGES[program] for program in programs if shutil.which(program, path=path) is None})


def ensure_programs(programs: Iterable[str]) -> None:
    """Installs what is missing of these programs, and says so."""
    missing = missing_packages(programs)
    if not missing:
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise ClusterError(
            f"this needs {', '.join(missing)} (Debian's names), and only root on a machine with apt-get gets them from here. "
            "Install them, or start a Docker engine, or set KUBECONFIG to a cluster."
        )
    print(f"[cluster] installing {' '.join(missing)} with apt-get", file=sys.stderr, flush=True)
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update", "-qq"], ["install", "-qq", "--yes", "--no-install-recommends", *missing]):
        result = subprocess.run(["apt-get", *words], capture_output=True, text=True, env=environ, check=False)
        if result.returncode:
            complaint = "\n".join((result.stdout + result.stderr).splitlines()[-12:])
            raise ClusterError(f"'apt-get {' '.join(words)}' ended with {result.returncode}:\n{complaint}")
