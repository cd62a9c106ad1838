"""Runs the programs that the cluster is made with."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from cluster import layout


class ClusterError(RuntimeError):
    """The cluster cannot do what was asked; the message says what to do."""


def run(*command: str | Path, stdin: str = "", environ: Mapping[str, str] | None = None) -> str:
    """Returns what the command printed; one that fails is an error with what it complained about."""
    words = [str(word) for word in command]
    result = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False, env=environ or direct_environ())
    if result.returncode:
        complaint = (result.stderr or result.stdout).strip()
        raise ClusterError(f"'{' '.join(words)}' ended with {result.returncode}: {complaint}")
    return result.stdout


def wait_until(condition: Callable[[], bool], timeout_seconds: float, interval_seconds: float = 0.1) -> bool:
    """Returns whether the condition came true in time."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval_seconds)
    return True


def direct_environ(**variables: str) -> dict[str, str]:
    """Returns this environment, in which no proxy stands before the cluster and administrators' programs are found."""
    direct = [os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), layout.POD_RANGE, layout.SERVICE_RANGE]
    ranges = ",".join(filter(None, direct))
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    return {**os.environ, "PATH": path, "NO_PROXY": ranges, "no_proxy": ranges, **variables}
