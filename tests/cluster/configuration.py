"""The configuration files of the cluster's programs, rendered. Most are JSON, which every reader of YAML takes."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster import certificates, layout

# containerd 1.6 with its files, its shims' files and its pods' network namespaces below the cluster's own folders.
# Without CAP_SYS_RESOURCE nobody may lower an oom_score_adj, so containers keep that of containerd.
CONTAINERD = """\
version = 2
root = "{state}/containerd"
state = "{run}/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]

[grpc]
address = "{socket}"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
restrict_oom_score_adj = true
disable_apparmor = true
netns_mounts_under_state_dir = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{cni_plugins}"
conf_dir = "{configuration}/cni"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = "{run}/runc"
SystemdCgroup = false
"""

COREFILE = """\
.:{port} {{
    bind {node_ip}
    errors
    kubernetes {domain} in-addr.arpa {{
        kubeconfig {kubeconfig}
        pods insecure
        ttl 5
    }}
{forward}    cache 5
}}
"""


def cni() -> dict[str, Any]:
    """Returns the network of the pods: one bridge, one range of addresses, host ports. It enforces no NetworkPolicy."""
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": layout.POD_RANGE, "gateway": layout.NODE_IP}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        # A list that a reboot should forget, as it forgets the pods.
        "dataDir": str(layout.RUN / "addresses"),
    }
    bridge = {
        "type": "bridge",
        "bridge": layout.BRIDGE,
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": addresses,
    }
    return {
        "cniVersion": "0.4.0",
        "name": layout.NETWORK,
        "plugins": [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}],
    }


def kubelet(resolver: Path) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": layout.NODE_IP,
        "healthzPort": 0,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(certificates.certificate("ca"))},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(certificates.certificate("kubelet")),
        "tlsPrivateKeyFile": str(certificates.key("kubelet")),
        "containerRuntimeEndpoint": f"unix://{layout.CONTAINERD_SOCKET}",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "makeIPTablesUtilChains": False,
        "clusterDNS": [layout.DNS_SERVICE_IP],
        "clusterDomain": layout.DOMAIN,
        "resolvConf": str(resolver),
        "podLogsDir": str(layout.STATE / "pod-logs"),
        "volumePluginDir": str(layout.KUBELET / "volume-plugins"),
        # The disk and the images are the machine's: a full disk shall fail what fills it, not evict pods at 90 %.
        "evictionHard": dict.fromkeys(("nodefs.available", "nodefs.inodesFree", "imagefs.available"), "1%")
        | {"memory.available": "100Mi"},
        "imageGCHighThresholdPercent": 100,
        "featureGates": {"ImageVolume": True},
    }


def kube_proxy() -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        # A Service leads to a pod as soon as that is ready; by default rules change once a second.
        "iptables": {"minSyncPeriod": "100ms"},
        "nodePortAddresses": ["primary"],
        "clientConnection": {"kubeconfig": str(kubeconfig_path("proxy"))},
        "hostnameOverride": layout.NODE,
        "clusterCIDR": layout.POD_RANGE,
        "healthzBindAddress": f"{layout.NODE_IP}:10256",
        "metricsBindAddress": f"{layout.NODE_IP}:10249",
        "oomScoreAdj": 0,
        "conntrack": {"maxPerCore": 0, "min": 0},
    }


def kubeconfig(user: str) -> dict[str, Any]:
    """Returns how `user` reaches the API server, keys included, so that the file can be copied anywhere on the machine."""

    def encoded(path: Path) -> str:
        return base64.b64encode(path.read_bytes()).decode()

    credentials = {
        "client-certificate-data": encoded(certificates.certificate(user)),
        "client-key-data": encoded(certificates.key(user)),
    }
    server = {
        "server": f"https://{layout.NODE_IP}:{layout.API_PORT}",
        "certificate-authority-data": encoded(certificates.certificate("ca")),
    }
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": layout.NODE, "cluster": server}],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": layout.NODE, "context": {"cluster": layout.NODE, "user": user}}],
        "current-context": layout.NODE,
    }


def kubeconfig_path(user: str) -> Path:
    return layout.CONFIGURATION / f"{user}.kubeconfig"


def machine_resolver() -> Path:
    """Returns the file with the machine's name servers; systemd-resolved's stub listens where no pod can reach it."""
    behind_stub = Path("/run/systemd/resolve/resolv.conf")
    return behind_stub if behind_stub.exists() else Path("/etc/resolv.conf")


def corefile(resolver: Path) -> str:
    """Returns CoreDNS's configuration; names outside of the cluster are the machine's name servers' affair, if it has any."""
    named = resolver.exists() and any(line.startswith("nameserver") for line in resolver.read_text().splitlines())
    return COREFILE.format(
        port=layout.DNS_PORT,
        node_ip=layout.NODE_IP,
        domain=layout.DOMAIN,
        kubeconfig=kubeconfig_path("coredns"),
        forward=f"    forward . {resolver}\n" if named else "",
    )


def containerd() -> str:
    return CONTAINERD.format(
        state=layout.STATE,
        run=layout.RUN,
        socket=layout.CONTAINERD_SOCKET,
        pause=layout.PAUSE_IMAGE,
        cni_plugins=layout.CNI_PLUGINS,
        configuration=layout.CONFIGURATION,
    )


def files() -> Mapping[Path, str]:
    """Returns every configuration file with its content. The certificates must be there."""
    folder, resolver = layout.CONFIGURATION, machine_resolver()
    documents = {
        folder / "cni" / "10-nlocalmodels.conflist": cni(),
        folder / "kubelet.json": kubelet(resolver),
        folder / "kube-proxy.json": kube_proxy(),
    }
    documents |= {kubeconfig_path(user): kubeconfig(user) for user in certificates.IDENTITIES if user != "apiserver"}
    texts = {path: json.dumps(document, indent=2) + "\n" for path, document in documents.items()}
    return texts | {folder / "containerd.toml": containerd(), folder / "Corefile": corefile(resolver)}


def write_files() -> None:
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Some of them hold keys.
        path.parent.chmod(0o700)
        # kube-proxy ends when its file is written, whatever with.
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
