"""Kubernetes as one node out of this machine's own processes: for a machine that has no Docker engine."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from cluster import certificates, configuration, images, kernel, layout, manifests, packages, pause_image, programs, remains
from cluster.commands import ClusterError, run, wait_until
from cluster.services import Service, recorded_pid, stop_recorded

Say = Callable[[str], None]


def api(path: str) -> str | None:
    """Returns what the API server answers the administrator, or None when it does not answer well."""
    context = ssl.create_default_context(cafile=str(certificates.certificate("ca")))
    context.load_cert_chain(certificates.certificate("admin"), certificates.key("admin"))
    connection = http.client.HTTPSConnection(layout.NODE_IP, layout.API_PORT, timeout=5, context=context)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.read().decode() if answer.status == http.HTTPStatus.OK else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def api_is_ready() -> bool:
    return api("/readyz") is not None


def node_is_ready(since: float = 0) -> bool:
    """Returns whether the node is called ready, by a kubelet that began after `since` (seconds since the epoch)."""
    answer = api(f"/api/v1/nodes/{layout.NODE}")
    if answer is None:
        return False
    conditions = {condition["type"]: condition for condition in json.loads(answer)["status"].get("conditions", [])}
    ready = conditions.get("Ready", {"status": "Unknown", "lastHeartbeatTime": ""})
    said = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(since))
    return bool(ready["status"] == "True" and ready["lastHeartbeatTime"] >= said)


def dns_answers() -> bool:
    with suppress(OSError), socket.create_connection((layout.NODE_IP, layout.DNS_PORT), timeout=1):
        return True
    return False


def containerd_answers() -> bool:
    try:
        run(*images.CTR, "list", "--quiet")
    except ClusterError:
        return False
    return True


def is_healthy() -> bool:
    """Returns whether everything runs and answers; quick, and touches nothing."""
    if not layout.KUBECONFIG.exists():
        return False
    return all(states().values()) and api_is_ready() and node_is_ready() and dns_answers()


def states() -> Mapping[str, int | None]:
    """Returns the pid of each service, or None for one that is dead."""
    names = (*programs.FROM_DEBIAN, *programs.FROM_GO)
    return {name: recorded_pid(layout.SERVICES / f"{name}.pid") for name in names}


def expect(what: str, condition: Callable[[], bool], services: Mapping[str, Service], timeout_seconds: float) -> None:
    """Waits for the condition, but not when one of these services has died."""

    def settled() -> bool:
        return condition() or any(service.pid() is None for service in services.values())

    in_time = wait_until(settled, timeout_seconds)
    if dead := next((service for service in services.values() if service.pid() is None), None):
        raise ClusterError(f"{dead.name} has ended; {dead.log_tail()}")
    if not in_time:
        raise ClusterError(
            f"{what} is not there after {timeout_seconds:.0f} s. Logs: {layout.SERVICES}; `make cluster-down` clears all."
        )


def refuse_second_node() -> None:
    if not layout.STATE.exists() and (pids := remains.container_pids()):
        raise ClusterError(
            f"another Kubernetes node has pods on this machine (for one, process {min(pids)} in the cgroup kubepods). "
            "Set KUBECONFIG to use that cluster, or stop it."
        )


def apply(kubectl: Path, items: list[manifests.Manifest]) -> None:
    document = json.dumps(manifests.manifest_list(items))
    run(kubectl, "--kubeconfig", layout.KUBECONFIG, "apply", "--server-side", "--filename", "-", stdin=document)


def prepare() -> None:
    for folder in (layout.STATE, layout.RUN):
        folder.mkdir(parents=True, exist_ok=True)
    kernel.prepare()
    certificates.ensure_certificates()
    configuration.write_files()


def bring_pause_image() -> None:
    if not images.has_image(layout.PAUSE_IMAGE):
        archive = layout.STATE / "pause.tar"
        pause_image.build(archive, layout.PAUSE_IMAGE)
        images.import_images([archive])
        archive.unlink()


def start(kubectl: Path, say: Say) -> None:
    """Starts whatever does not run, and returns when the node takes pods."""
    if os.geteuid() != 0:
        raise ClusterError("a cluster out of this machine's processes needs root; or start a Docker engine, or set KUBECONFIG.")
    refuse_second_node()
    packages.ensure_programs(packages.NODE_PROGRAMS)
    services = programs.services()
    prepare()
    # What is still said of a node whose kubelet died proves nothing.
    began = 0.0 if services["kubelet"].pid() else time.time()
    foundation = {name: services[name] for name in programs.FOUNDATION}
    for service in foundation.values():
        if service.start():
            say(f"started {service.name}")
    expect("containerd", containerd_answers, foundation, 20)
    bring_pause_image()
    expect("the API server", lambda: api("/api/v1/namespaces/kube-system") is not None, foundation, 60)
    # CoreDNS needs its permissions from the start.
    apply(kubectl, [*manifests.dns_permissions(), *manifests.dns_service(), manifests.storage_class()])
    for service in services.values():
        if service.start():
            say(f"started {service.name}")
    expect("the node", lambda: node_is_ready(since=began), services, 60)
    expect("the cluster's DNS server", dns_answers, services, 30)
    account = "/api/v1/namespaces/default/serviceaccounts/default"
    expect("the default service account", lambda: api(account) is not None, services, 30)


def stop() -> bool:
    """Stops everything and removes every trace; returns whether there was any."""
    if not layout.STATE.exists() and not layout.RUN.exists():
        return False
    stop_recorded(layout.SERVICES.glob("*.pid"))
    remains.remove_all()
    return True
