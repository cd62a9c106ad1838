"""A cluster as a person at a terminal has it: kubectl and helm, and a port forwarded for as long as it is needed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import go_binaries
from support.serving import free_port

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "nlocalmodels"
READY_SECONDS = 240.0


@dataclass(frozen=True)
class Kubernetes:
    """`helm` is the program to install with: `helm` (version 3) or `helm4`."""

    kubeconfig: Path

    @property
    def environ(self) -> dict[str, str]:
        """Returns an environment in which `kubectl` and `helm` mean this cluster, also for what the guide's commands start."""
        folders = [str(go_binaries.ensure(name).parent) for name in ("kubectl", "helm", "ct")]
        path = os.pathsep.join([*folders, os.environ.get("PATH", "")])
        # The API server is asked directly, whatever proxy the environment names.
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig), "PATH": path, "NO_PROXY": "*", "no_proxy": "*"}

    def run(self, *command: str | Path, stdin: str = "", timeout_seconds: float = 600) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end, whatever that is."""
        words = [str(word) for word in command]
        return subprocess.run(
            words, input=stdin, capture_output=True, text=True, env=self.environ, timeout=timeout_seconds, check=False
        )

    def kubectl(self, *arguments: str | Path, stdin: str = "") -> str:
        """Returns what kubectl printed; a failure is an assertion with its complaint."""
        return _succeeded(self.run(go_binaries.ensure("kubectl"), *arguments, stdin=stdin))

    def shell(self, command: str, timeout_seconds: float = 600) -> str:
        """Runs a line as a person types it."""
        return _succeeded(self.run("bash", "-ceu", command, timeout_seconds=timeout_seconds))

    def get(self, kind: str, namespace: str, name: str = "", selector: str = "") -> Any:
        """Returns one object, or all that a selector selects."""
        words = ["get", kind, *([name] if name else []), "-n", namespace, *(["-l", selector] if selector else []), "-o", "json"]
        found = json.loads(self.kubectl(*words))
        return found if name else found["items"]

    def wait(self, condition: Callable[[], Any], what: str, timeout_seconds: float = READY_SECONDS) -> Any:
        """Polls until the condition is truthy, and returns what it returned."""
        deadline = time.monotonic() + timeout_seconds
        while not (result := condition()):
            assert time.monotonic() < deadline, f"waited {timeout_seconds:.0f} s in vain for {what}"
            time.sleep(0.5)
        return result

    @contextlib.contextmanager
    def forwarded(self, namespace: str, target: str, port: int) -> Iterator[str]:
        """Yields the local address of a forwarded port, as `kubectl port-forward` gives it."""
        local = free_port()
        command = [go_binaries.ensure("kubectl"), "port-forward", "-n", namespace, target, f"{local}:{port}"]
        with subprocess.Popen(
            [str(word) for word in command], env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            try:
                first = process.stdout.readline()
                assert first.startswith("Forwarding"), first + process.stdout.read()
                yield f"http://127.0.0.1:{local}"
            finally:
                process.terminate()


@dataclass(frozen=True)
class Release:
    """One installation of the chart. Its own objects are found by its name."""

    kubernetes: Kubernetes
    name: str
    namespace: str
    helm: str = "helm"

    @property
    def fullname(self) -> str:
        """Returns the name of its Deployment, which the cluster knows."""
        (deployment,) = self.kubernetes.get("deployment", self.namespace, selector=self.selector)
        return str(deployment["metadata"]["name"])

    @property
    def selector(self) -> str:
        return f"app.kubernetes.io/instance={self.name}"

    def apply(self, values: Mapping[str, Any], *options: str, wait: bool = True, chart: Path = CHART) -> str:
        """Installs or upgrades, and returns what Helm printed."""
        waiting = ["--wait", "--timeout", f"{READY_SECONDS:.0f}s"] if wait else []
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(dict(values), file)
            file.flush()
            command: list[str | Path] = [
                "upgrade",
                "--install",
                self.name,
                chart,
                "-n",
                self.namespace,
                "-f",
                file.name,
                *waiting,
                *options,
            ]
            return _succeeded(self.kubernetes.run(go_binaries.ensure(self.helm), *command))

    def test(self) -> str:
        """Runs `helm test` and returns what it printed, with what the test says."""
        command = ["test", self.name, "--timeout", "300s", "-n", self.namespace]
        result = self.kubernetes.run(go_binaries.ensure(self.helm), *command)
        return _succeeded(result) + result.stderr

    def rollback(self, *revision: str) -> str:
        """Goes back to the revision before this one, or to another."""
        return self._helm("rollback", self.name, *revision, "--wait", "--timeout", f"{READY_SECONDS:.0f}s")

    def uninstall(self) -> str:
        return self._helm("uninstall", self.name, "--ignore-not-found", "--wait", "--timeout", "120s")

    def pods(self, component: str = "server") -> list[Any]:
        """Returns its pods that are not on their way out."""
        pods = self.kubernetes.get("pod", self.namespace, selector=f"{self.selector},app.kubernetes.io/component={component}")
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def readiness(self) -> dict[str, Any]:
        """Returns what each pod's /readyz says, by the pod's name; {} for one that does not answer, or is not ready."""
        said = {}
        for pod in self.pods():
            name = pod["metadata"]["name"]
            path = f"/api/v1/namespaces/{self.namespace}/pods/{name}:11434/proxy/readyz"
            result = self.kubernetes.run(go_binaries.ensure("kubectl"), "get", "--raw", path)
            said[name] = json.loads(result.stdout) if result.returncode == 0 else {}
        return said

    def jobs(self, component: str = "downloader") -> list[Any]:
        return list(
            self.kubernetes.get("job", self.namespace, selector=f"{self.selector},app.kubernetes.io/component={component}")
        )

    @contextlib.contextmanager
    def served(self, port: int = 11434) -> Iterator[str]:
        """Yields the local address of its Service."""
        with self.kubernetes.forwarded(self.namespace, f"service/{self.fullname}", port) as address:
            yield address

    def _helm(self, *arguments: str) -> str:
        return _succeeded(self.kubernetes.run(go_binaries.ensure(self.helm), *arguments, "-n", self.namespace))


def _succeeded(result: subprocess.CompletedProcess[str]) -> str:
    words = " ".join(str(word) for word in result.args)
    assert result.returncode == 0, f"{words}\nended with {result.returncode}:\n{result.stdout}{result.stderr}"
    return str(result.stdout)


def notes(printed: str) -> str:
    """Returns the chart's notes out of what Helm printed."""
    return printed.partition("NOTES:\n")[2]


def commands(text: str) -> list[str]:
    """Returns the commands in notes or a guide: indented lines, continued ones joined."""
    joined = re.sub(r"\\\n\s*", "", text)
    return [
        line.strip()
        for line in joined.splitlines()
        if line.startswith("  ") and re.match(r"\s+(kubectl|curl|helm|[A-Z]+=)", line)
    ]
