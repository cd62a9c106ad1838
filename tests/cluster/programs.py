"""The cluster's programs and how each is started."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import go_binaries
from cluster import certificates, layout
from cluster.configuration import kubeconfig_path
from cluster.services import Service

FROM_DEBIAN = ("etcd", "containerd")
FROM_GO = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "coredns")
# What the others need to answer first.
FOUNDATION = (*FROM_DEBIAN, "kube-apiserver")
IMAGE_VOLUMES = "--feature-gates=ImageVolume=true"  # off by default until 1.35


def flags(**values: object) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]


def apiserver_flags() -> list[str]:
    return [
        *flags(
            etcd_servers=f"http://127.0.0.1:{layout.ETCD_PORT}",
            advertise_address=layout.NODE_IP,
            bind_address=layout.NODE_IP,
            secure_port=layout.API_PORT,
            service_cluster_ip_range=layout.SERVICE_RANGE,
            tls_cert_file=certificates.certificate("apiserver"),
            tls_private_key_file=certificates.key("apiserver"),
            client_ca_file=certificates.certificate("ca"),
            service_account_issuer=f"https://kubernetes.default.svc.{layout.DOMAIN}",
            service_account_key_file=certificates.certificate("service-accounts"),
            service_account_signing_key_file=certificates.key("service-accounts"),
            authorization_mode="Node,RBAC",
            enable_admission_plugins="NodeRestriction",
            allow_privileged="true",
            # By its address: no DNS of the machine knows the node's name.
            kubelet_preferred_address_types="InternalIP",
            kubelet_certificate_authority=certificates.certificate("ca"),
            kubelet_client_certificate=certificates.certificate("apiserver"),
            kubelet_client_key=certificates.key("apiserver"),
        ),
        IMAGE_VOLUMES,
    ]


def etcd_flags() -> list[str]:
    client, peer = (f"http://127.0.0.1:{port}" for port in (layout.ETCD_PORT, layout.ETCD_PEER_PORT))
    return [
        *flags(name=layout.NODE, data_dir=layout.STATE / "etcd", listen_client_urls=client, advertise_client_urls=client),
        *flags(listen_peer_urls=peer, initial_advertise_peer_urls=peer, initial_cluster=f"{layout.NODE}={peer}"),
    ]


def controller_manager_flags() -> list[str]:
    return flags(
        kubeconfig=kubeconfig_path("controller-manager"),
        bind_address="127.0.0.1",
        leader_elect="false",
        use_service_account_credentials="true",
        service_account_private_key_file=certificates.key("service-accounts"),
        root_ca_file=certificates.certificate("ca"),
        flex_volume_plugin_dir=layout.KUBELET / "volume-plugins",
    )


def commands(programs: Mapping[str, Path]) -> dict[str, list[str]]:
    """Returns the words of each command, in the order in which they start."""
    configuration = layout.CONFIGURATION
    kubelet = flags(
        kubeconfig=kubeconfig_path("kubelet"),
        config=configuration / "kubelet.json",
        root_dir=layout.KUBELET,
        cert_dir=layout.KUBELET / "pki",
        hostname_override=layout.NODE,
        node_ip=layout.NODE_IP,
    )
    arguments = {
        "etcd": etcd_flags(),
        "containerd": flags(config=configuration / "containerd.toml"),
        "kube-apiserver": apiserver_flags(),
        "kube-controller-manager": controller_manager_flags(),
        "kube-scheduler": flags(kubeconfig=kubeconfig_path("scheduler"), bind_address="127.0.0.1", leader_elect="false"),
        "kubelet": kubelet,
        "kube-proxy": flags(config=configuration / "kube-proxy.json"),
        "coredns": ["-conf", str(configuration / "Corefile")],
    }
    return {name: [str(programs.get(name, name)), *words] for name, words in arguments.items()}


def services() -> dict[str, Service]:
    """Returns the cluster's services by name; the first time this builds them."""
    programs = {name: go_binaries.ensure(name) for name in FROM_GO}
    return {name: Service(name, tuple(words), layout.SERVICES) for name, words in commands(programs).items()}
