"""The model source in the cluster: deployed once, told to misbehave over a forwarded port."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx
import yaml

from support.kubernetes import Kubernetes
from support.source_image import source_index

NAMESPACE = "model-source"
HOST = f"{NAMESPACE}.{NAMESPACE}.svc.cluster.local:8080"


def source_model(name: str, **more: Any) -> dict[str, Any]:
    """Returns what models.add says of a file of the source."""
    return {"source": f"http://{HOST}/{name}", **source_index()[name], **more}


def manifests(image: str) -> str:
    """Returns the namespace, the pod and the Service as YAML."""
    labels = {"app": NAMESPACE}
    metadata = {"name": NAMESPACE, "namespace": NAMESPACE, "labels": labels}
    restricted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
    container = {
        "name": "source",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "ports": [{"containerPort": 8080}],
        "readinessProbe": {"httpGet": {"path": "/_health", "port": 8080}, "periodSeconds": 1},
        "securityContext": restricted,
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
    }
    pod = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65534, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    documents = [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"selector": labels, "ports": [{"port": 8080}]},
        },
    ]
    return yaml.safe_dump_all(documents)


class SourcePod:
    """Speaks to the source's control paths, over a forwarded port that is forwarded anew where a kubelet has restarted."""

    def __init__(self, kubernetes: Kubernetes) -> None:
        self._kubernetes = kubernetes
        self._forwarding = contextlib.ExitStack()
        self._url = ""

    def __enter__(self) -> SourcePod:
        self._forward()
        return self

    def __exit__(self, *_: object) -> None:
        self._forwarding.close()

    def behave(self, rules: dict[str, dict[str, Any]]) -> None:
        """Orders how paths are answered from now on; {} is well-behaved."""
        self._ask("PUT", "/_control", rules)

    def reset(self) -> None:
        """Behaves well and forgets all requests."""
        self._ask("DELETE", "/_control")
        self._ask("DELETE", "/_requests")

    def requests(self, file: str = "") -> list[dict[str, Any]]:
        """Returns the requests so far, of one file or of all."""
        return [request for request in self._ask("GET", "/_requests").json() if request["path"].startswith(f"/{file}")]

    def sent_bytes(self, file: str = "") -> int:
        return sum(request["sent_bytes"] for request in self.requests(file))

    def _forward(self) -> None:
        self._forwarding.close()
        self._url = self._forwarding.enter_context(self._kubernetes.forwarded(NAMESPACE, f"service/{NAMESPACE}", 8080))

    def _ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        try:
            answer = httpx.request(method, self._url + path, json=body, timeout=30)
        except httpx.TransportError:
            self._forward()
            answer = httpx.request(method, self._url + path, json=body, timeout=30)
        return answer.raise_for_status()


@contextlib.contextmanager
def deployed(kubernetes: Kubernetes, image: str) -> Iterator[SourcePod]:
    """Deploys the source, and removes it at the end."""
    kubernetes.kubectl("apply", "-f", "-", stdin=manifests(image))
    try:
        kubernetes.kubectl("rollout", "status", f"deployment/{NAMESPACE}", "-n", NAMESPACE, "--timeout=120s")
        with SourcePod(kubernetes) as source:
            yield source
    finally:
        kubernetes.kubectl("delete", "namespace", NAMESPACE, "--wait=true", "--timeout=120s")
