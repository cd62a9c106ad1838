"""The Gateway API's HTTPRoute, as far as creating one needs it: a definition without its schema."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import yaml

from support.kubernetes import Kubernetes

NAME = "httproutes.gateway.networking.k8s.io"
_DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": NAME,
        # Names of this group are reserved: the API server wants to know who allowed it.
        "annotations": {"api-approved.kubernetes.io": "unapproved, for tests"},
    },
    "spec": {
        "group": "gateway.networking.k8s.io",
        "scope": "Namespaced",
        "names": {"plural": "httproutes", "singular": "httproute", "kind": "HTTPRoute"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


@contextlib.contextmanager
def installed(kubernetes: Kubernetes) -> Iterator[None]:
    """Defines HTTPRoute for as long as the block runs, unless the cluster has it."""
    if kubernetes.run("kubectl", "get", "crd", NAME).returncode == 0:
        yield
        return
    kubernetes.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(_DEFINITION))
    try:
        kubernetes.kubectl("wait", "--for=condition=Established", f"crd/{NAME}", "--timeout=60s")
        yield
    finally:
        kubernetes.kubectl("delete", "crd", NAME, "--wait=true")
