"""Where the cluster of this machine keeps its things, and its addresses. There is one such cluster per machine."""

from __future__ import annotations

from pathlib import Path

STATE = Path("/var/lib/nlocalmodels-cluster")
RUN = Path("/run/nlocalmodels-cluster")
LOCK = Path("/run/nlocalmodels-cluster.lock")

CERTIFICATES = STATE / "certificates"
CONFIGURATION = STATE / "configuration"
SERVICES = STATE / "services"
VOLUMES = STATE / "volumes"
KUBELET = STATE / "kubelet"
KUBECONFIG = CONFIGURATION / "admin.kubeconfig"
CONTAINERD_SOCKET = RUN / "containerd.sock"
CNI_PLUGINS = Path("/usr/lib/cni")

NODE = "nlocalmodels"
DOMAIN = "cluster.local"
NETWORK = "nlocalmodels"
# The node lives on the bridge of its pods: an address that is always there, and that no other machine can reach.
BRIDGE = "nlocalmodels0"
POD_RANGE = "10.244.0.0/16"
NODE_IP = "10.244.0.1"
SERVICE_RANGE = "10.96.0.0/16"
API_SERVICE_IP = "10.96.0.1"
DNS_SERVICE_IP = "10.96.0.10"

# Beside the usual ports, so that an etcd or a DNS server of the machine does not matter.
API_PORT = 16443
ETCD_PORT = 12379
ETCD_PEER_PORT = 12380
DNS_PORT = 1053

PAUSE_IMAGE = "localhost/nlocalmodels-pause:1"
STORAGE_CLASS = "nlocalmodels-rwx"
