"""Removes what a stopped node leaves in the kernel: containers, mounts, network interfaces, packet filter rules, cgroups."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cluster import kernel, layout
from cluster.commands import ClusterError, run, wait_until

FOLDERS = (layout.STATE, layout.RUN)
# Where the programs put files whatever their configuration says.
KUBELET_PLUGINS = Path("/var/lib/kubelet/device-plugins")
CNI_RESULTS = Path("/var/lib/cni/results")
SHARED_FOLDERS = (
    KUBELET_PLUGINS,
    KUBELET_PLUGINS.parent,
    Path("/var/log/containers"),
    CNI_RESULTS,
    CNI_RESULTS.parent,
    Path("/run/containerd/s"),
    Path("/run/containerd"),
)


def below(path: Path, folders: tuple[Path, ...] = FOLDERS) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def mount_points(mountinfo: str) -> list[tuple[str, Path]]:
    """Returns kind and place of every mount in the order of mounting, from the text of /proc/self/mountinfo."""
    points = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        place = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), before.split()[4])
        points.append((after.split()[0], Path(place)))
    return points


def mounts() -> list[tuple[str, Path]]:
    return mount_points(Path("/proc/self/mountinfo").read_text())


def pod_cgroups() -> list[Path]:
    """Returns the kubelet's cgroups in every hierarchy, children after their parents."""
    roots = [place / "kubepods" for kind, place in mounts() if kind in ("cgroup", "cgroup2")]
    return [Path(folder) for root in roots for folder, _, _ in os.walk(root)]


def container_pids() -> set[int]:
    pids: set[int] = set()
    for cgroup in pod_cgroups():
        # One that is emptied and removed at this moment has nobody in it.
        with suppress(OSError):
            pids.update(int(pid) for pid in (cgroup / "cgroup.procs").read_text().split())
    return pids


def shim_pids() -> set[int]:
    """Returns containerd's shims: the processes that work in the folders of its tasks."""
    pids = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if below(Path(os.readlink(process / "cwd")), (layout.RUN / "containerd",)):
                pids.add(int(process.name))
    return pids


def kill_containers() -> None:
    def all_gone() -> bool:
        pids = container_pids() | shim_pids()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    if not wait_until(all_gone, timeout_seconds=10, interval_seconds=0.05):
        raise ClusterError(f"processes {sorted(container_pids() | shim_pids())} of the cluster cannot be killed.")


def shim_sockets() -> Iterator[Path]:
    """Yields the sockets of the shims, which containerd 1.6 puts into a folder of its own whatever its configuration says."""
    for address in (layout.RUN / "containerd").glob("io.containerd.runtime.v2.task/*/*/address"):
        yield Path(address.read_text().strip().removeprefix("unix://"))


def unmount() -> None:
    for _ in range(3):
        points = [place for _, place in mounts() if below(place)]
        if not points:
            return
        run("umount", "--lazy", *reversed(points))
    raise ClusterError(f"{points[0]} cannot be unmounted; `make cluster-down` again when its user has ended.")


def links(*selection: str) -> list[str]:
    return [link["ifname"] for link in json.loads(run("ip", "-json", "link", "show", *selection) or "[]") if "ifname" in link]


def remove_links() -> None:
    if layout.BRIDGE not in links():
        return
    # The kernel removes a pod's pair of interfaces with its namespace, in its own time.
    wait_until(lambda: not links("master", layout.BRIDGE), timeout_seconds=2)
    for name in [*links("master", layout.BRIDGE), layout.BRIDGE]:
        with suppress(ClusterError):
            run("ip", "link", "delete", name)


def removal_rules(saved: str) -> str:
    """Returns what `iptables-restore --noflush` needs to remove the cluster's rules from this output of `iptables-save`.

    CNI's chains are the cluster's when a rule in them or to them bears the network's name; those of host ports may be shared.
    """
    script = []
    for table, body in re.findall(r"^\*(\w+)\n(.*?)^COMMIT$", saved, re.MULTILINE | re.DOTALL):
        chains = re.findall(r"^:(\S+)", body, re.MULTILINE)
        rules = [line for line in body.splitlines() if line.startswith("-A ")]
        marked = [rule for rule in rules if f'name: \\"{layout.NETWORK}\\"' in rule]
        named = {chain for rule in marked for chain in (rule.split()[1], target(rule)) if chain.startswith("CNI-")}
        shared = {chain for chain in chains if chain.startswith("CNI-HOSTPORT-")}
        leads_to = {target(rule) for rule in rules if rule.split()[1] in shared}
        others = {chain for chain in leads_to if chain.startswith("CNI-")} - named - shared
        named = named - shared if others else named | shared
        ours = sorted({chain for chain in chains if chain.startswith("KUBE-")} | named)
        if ours:
            into = [rule.replace("-A ", "-D ", 1) for rule in rules if rule.split()[1] not in ours and target(rule) in ours]
            script += [f"*{table}", *into, *(f"-F {chain}" for chain in ours), *(f"-X {chain}" for chain in ours), "COMMIT"]
    return "\n".join([*script, ""]) if script else ""


def target(rule: str) -> str:
    match = re.search(r" -[jg] (\S+)", rule)
    return match[1] if match else ""


def remove_packet_filter_rules() -> None:
    for family in ("iptables", "ip6tables"):
        if script := removal_rules(run(f"{family}-save")):
            run(f"{family}-restore", "--noflush", stdin=script)


def remove_cgroups() -> None:
    for cgroup in reversed(pod_cgroups()):
        # The kernel needs a moment after the last process of a cgroup has ended.
        deadline = time.monotonic() + 5
        while cgroup.exists():
            try:
                cgroup.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


def remove_files() -> None:
    """Removes the cluster's folders and the few files that its programs put elsewhere."""
    sockets = list(shim_sockets())
    if still_mounted := [str(place) for _, place in mounts() if below(place)]:
        raise ClusterError(f"{', '.join(still_mounted)} are mounted still; nothing is deleted below a mount.")
    # With images that is ten thousand files and more, which rm removes in a third of Python's time.
    run("rm", "-rf", "--one-file-system", *FOLDERS)
    log_links = [
        link for link in Path("/var/log/containers").glob("*.log") if link.is_symlink() and below(Path(os.readlink(link)))
    ]
    pods = [result.name.split("-")[1] for result in CNI_RESULTS.glob(f"{layout.NETWORK}-*")]
    results = [result for pod in pods for result in CNI_RESULTS.glob(f"*-{pod}-*")]
    plugin_files = [KUBELET_PLUGINS / name for name in ("kubelet.sock", "kubelet_internal_checkpoint")]
    for path in (*sockets, *log_links, *results, *plugin_files):
        path.unlink(missing_ok=True)
    for folder in SHARED_FOLDERS:
        # Only when nothing of anybody else's is in it.
        with suppress(OSError):
            folder.rmdir()


def remove_all() -> None:
    kill_containers()
    unmount()
    remove_links()
    remove_packet_filter_rules()
    remove_cgroups()
    kernel.restore_settings()
    remove_files()
