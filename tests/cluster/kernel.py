"""What the node changes in the kernel before it starts, and how it was before."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

from cluster import layout
from cluster.commands import ClusterError, run

# The kubelet, kube-proxy and the bridge plugin write these.
CHANGED = (
    "kernel/keys/root_maxbytes",
    "kernel/keys/root_maxkeys",
    "kernel/panic",
    "kernel/panic_on_oops",
    "net/ipv4/conf/all/route_localnet",
    "net/ipv4/ip_forward",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
)
SYSCTL = Path("/proc/sys")
RECORD = layout.STATE / "sysctl.json"


def record_settings() -> None:
    if not RECORD.exists():
        RECORD.write_text(
            json.dumps({name: (SYSCTL / name).read_text().strip() for name in CHANGED if (SYSCTL / name).exists()})
        )


def restore_settings() -> None:
    if RECORD.exists():
        for name, value in json.loads(RECORD.read_text()).items():
            if (SYSCTL / name).read_text().strip() != value:
                (SYSCTL / name).write_text(value)


def ensure_bridge() -> None:
    """Makes the bridge that the pods will hang on, since its address is the node's from the start."""
    if not Path("/sys/class/net", layout.BRIDGE).exists():
        run("ip", "link", "add", layout.BRIDGE, "type", "bridge")
    length = layout.POD_RANGE.partition("/")[2]
    run("ip", "address", "replace", f"{layout.NODE_IP}/{length}", "dev", layout.BRIDGE)
    run("ip", "link", "set", layout.BRIDGE, "up")


def ensure_bridge_filter() -> None:
    """Lets the packet filter see what pods of one bridge send one another, else answers of a Service would miss their way."""
    switch = SYSCTL / "net/bridge/bridge-nf-call-iptables"
    if not switch.exists() and shutil.which("modprobe"):
        with suppress(ClusterError):
            run("modprobe", "br_netfilter")
    if not switch.exists():
        raise ClusterError("this kernel has no br_netfilter, which Services need; use a Docker engine or another cluster.")
    switch.write_text("1")


def prepare() -> None:
    record_settings()
    ensure_bridge()
    ensure_bridge_filter()
