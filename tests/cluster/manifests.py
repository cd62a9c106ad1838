"""What the cluster holds from the start: the way to its DNS server, and volumes that several pods can write."""

from __future__ import annotations

from typing import Any

from cluster import layout

Manifest = dict[str, Any]


def dns_service() -> list[Manifest]:
    """Returns the Service `kube-dns`, whose only endpoint is the CoreDNS that runs beside the node."""
    metadata = {"name": "kube-dns", "namespace": "kube-system"}
    protocols = {"dns": "UDP", "dns-tcp": "TCP"}
    service_ports = [{"name": name, "port": 53, "protocol": protocol} for name, protocol in protocols.items()]
    node_ports = [{"name": name, "port": layout.DNS_PORT, "protocol": protocol} for name, protocol in protocols.items()]
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"clusterIP": layout.DNS_SERVICE_IP, "ports": service_ports},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**metadata, "labels": {"kubernetes.io/service-name": "kube-dns"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [layout.NODE_IP], "conditions": {"ready": True}}],
            "ports": node_ports,
        },
    ]


def dns_permissions() -> list[Manifest]:
    rules = [
        {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    group = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": {"name": "coredns"}, "rules": rules},
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "coredns"},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "coredns"},
            "subjects": [{"apiGroup": group, "kind": "User", "name": "coredns"}],
        },
    ]


def storage_class() -> Manifest:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": layout.STORAGE_CLASS},
        "provisioner": "kubernetes.io/no-provisioner",
        "reclaimPolicy": "Retain",
    }


def rwx_volume(name: str) -> Manifest:
    """Returns a volume that all pods of the one node can mount and write; its directory has the volume's name."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "capacity": {"storage": "50Gi"},
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": layout.STORAGE_CLASS,
            "hostPath": {"path": str(layout.VOLUMES / name), "type": "DirectoryOrCreate"},
        },
    }


def manifest_list(items: list[Manifest]) -> Manifest:
    return {"apiVersion": "v1", "kind": "List", "items": items}
