"""Constant load from a pod in the cluster: every request and every stream is counted, by the Service as a client meets it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.kubernetes import Kubernetes

SCRIPT = Path(__file__).with_name("load_client.py")
MAX_SECONDS = 1200


@dataclass
class Load:
    """What has come of the load; `failures` holds a line for each request that was not answered as it should be."""

    kubernetes: Kubernetes
    namespace: str
    name: str
    answers: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def so_far(self) -> tuple[int, list[str]]:
        """Returns how many requests have been answered, and what failed; nothing while a kubelet that has just started shows
        no logs yet."""
        lines = self.kubernetes.run("kubectl", "logs", self.name, "-n", self.namespace, "--tail=1").stdout.splitlines()
        last = json.loads(lines[-1]) if lines else {"answers": {}, "failures": []}
        return sum(last["answers"].values()), last["failures"]

    def count(self) -> int:
        """Returns how many requests have been answered so far."""
        return self.so_far()[0]

    def settle(self, num_answers: int = 20) -> None:
        """Waits for so many more answers."""
        before = self.kubernetes.wait(self.count, "a first answer")
        self.kubernetes.wait(lambda: self.count() >= before + num_answers, f"{num_answers} more answers")


def manifest(name: str, namespace: str, image: str, address: str, models: list[str]) -> dict[str, Any]:
    restricted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
    container = {
        "name": "client",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", SCRIPT.read_text()],
        "env": [
            {"name": "ADDRESS", "value": address},
            {"name": "MODELS", "value": " ".join(models)},
            {"name": "MAX_SECONDS", "value": str(MAX_SECONDS)},
        ],
        "securityContext": restricted,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 30,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65534, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
        },
    }


@contextlib.contextmanager
def under_load(kubernetes: Kubernetes, namespace: str, image: str, address: str, models: list[str]) -> Iterator[Load]:
    """Runs the client for as long as the block does. At the end, `answers` and `failures` are filled in."""
    # One for each Service, as several releases of a namespace may be in use at once.
    name = f"load-{address.partition('.')[0]}"
    kubernetes.kubectl("apply", "-f", "-", stdin=json.dumps(manifest(name, namespace, image, address, models)))
    load = Load(kubernetes, namespace, name)
    try:
        kubernetes.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "-n", namespace, "--timeout=60s")
        load.settle()
        yield load
        load.settle()
        kubernetes.kubectl("exec", name, "-n", namespace, "--", "python", "-c", "import os, signal; os.kill(1, signal.SIGUSR1)")
        kubernetes.kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{name}", "-n", namespace, "--timeout=60s")
        last = json.loads(kubernetes.kubectl("logs", name, "-n", namespace, "--tail=1"))
        load.answers, load.failures = last["answers"], last["failures"]
    finally:
        kubernetes.kubectl("delete", "pod", name, "-n", namespace, "--wait=true", "--ignore-not-found", "--timeout=60s")
