"""The cluster that tests run against, whoever provides it."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import go_binaries
from cluster import images, kind, layout, manifests, node, programs
from cluster.commands import ClusterError, direct_environ, run
from cluster.services import stop_recorded

EXISTING, KIND, OWN = "existing", "kind", "own"


def say(text: str) -> None:
    print(f"[cluster] {text}", file=sys.stderr, flush=True)


@dataclass
class Cluster:
    """A running cluster; `provider` is `existing`, `kind` or `own`."""

    kubeconfig: Path
    provider: str

    @property
    def environ(self) -> dict[str, str]:
        """The environment for kubectl and helm."""
        return direct_environ(KUBECONFIG=str(self.kubeconfig))

    def kubectl(self, *arguments: str | Path, stdin: str = "") -> str:
        """Returns what kubectl printed."""
        return run(kubectl_path(self.provider), *arguments, stdin=stdin, environ=self.environ)

    def load_images(self, archives: Sequence[Path]) -> None:
        """Brings images into the node; a pod finds them with imagePullPolicy IfNotPresent or Never."""
        if self.provider == EXISTING:
            raise ClusterError(
                "images cannot be loaded into the cluster that KUBECONFIG names: push them to a registry it can reach, "
                "and name them there by the values image.server and image.downloader."
            )
        if self.provider == KIND:
            kind.load_images(archives)
        else:
            images.import_images(archives)

    def create_rwx_volumes(self, count: int) -> None:
        """Sees to it that `count` empty ReadWriteMany volumes of the class `nlocalmodels-rwx` are there to be claimed."""
        if self.provider == EXISTING:
            raise ClusterError(
                "volumes for several writers are the affair of the cluster that KUBECONFIG names; claim one of it."
            )
        with exclusive():
            self._create_rwx_volumes(count)

    def _create_rwx_volumes(self, count: int) -> None:
        found = json.loads(self.kubectl("get", "persistentvolumes", "--output", "json"))["items"]
        phases = {
            volume["metadata"]["name"]: volume["status"].get("phase", "Pending")
            for volume in found
            if volume["spec"].get("storageClassName") == layout.STORAGE_CLASS
        }
        released = [name for name, phase in phases.items() if phase in ("Released", "Failed")]
        if released:
            self.kubectl("delete", "persistentvolumes", *released)
            self.run_on_node(shlex.join(["rm", "-rf", *(str(layout.VOLUMES / name) for name in released)]))
        taken = set(phases) - set(released)
        num_free = sum(phases[name] in ("Available", "Pending") for name in taken)
        names = (f"{layout.STORAGE_CLASS}-{number}" for number in range(1, len(taken) + count + 1))
        new = [name for name in names if name not in taken][: max(0, count - num_free)]
        for name in new:
            folder = shlex.quote(str(layout.VOLUMES / name))
            self.run_on_node(f"rm -rf {folder} && mkdir -p {folder} && chmod 0777 {folder}")
        if new:
            items = [manifests.storage_class(), *map(manifests.rwx_volume, new)]
            self.kubectl("apply", "--server-side", "--filename", "-", stdin=json.dumps(manifests.manifest_list(items)))

    def kill_sandbox(self, pod_uid: str) -> None:
        """Kills what a pod's containers live in, as a node's restart does: the kubelet makes it anew, init containers first."""
        ctr = "ctr --namespace k8s.io" if self.provider == KIND else shlex.join(images.CTR[:-1])
        labels = {"io.kubernetes.pod.uid": pod_uid, "io.cri-containerd.kind": "sandbox"}
        sandbox = ",".join(f'labels."{name}"=={value}' for name, value in labels.items())
        self.run_on_node(f"{ctr} tasks kill --signal SIGKILL $({ctr} containers list --quiet {shlex.quote(sandbox)})")

    def restart_kubelet(self) -> None:
        """Ends the kubelet and starts it again; pods run on meanwhile."""
        if self.provider == OWN:
            stop_recorded([layout.SERVICES / "kubelet.pid"])
            node.start(kubectl_path(self.provider), say)
        else:
            self.run_on_node("systemctl restart kubelet")

    def run_on_node(self, script: str) -> None:
        if self.provider == EXISTING:
            raise ClusterError("the nodes of the cluster that KUBECONFIG names are not ours.")
        if self.provider == KIND:
            kind.run_on_node(script)
        else:
            run("sh", "-c", script)


def kubectl_path(provider: str) -> Path:
    """Returns the kubectl that fits: that of the own cluster's version, else the user's, else the same."""
    users = shutil.which("kubectl")
    return Path(users) if users and provider != OWN else go_binaries.ensure("kubectl")


def chosen_provider() -> str:
    named = os.environ.get("KUBECONFIG", "")
    if named and named not in (str(layout.KUBECONFIG), str(kind.kubeconfig_path())):
        return EXISTING
    # What was started stays what is meant, also when a Docker engine starts later.
    return KIND if not layout.STATE.exists() and kind.docker_answers() else OWN


@contextmanager
def exclusive() -> Iterator[None]:
    """Keeps two from starting, stopping or changing the cluster at the same time."""
    lock_path = layout.LOCK if os.access(layout.LOCK.parent, os.W_OK) else kind.kubeconfig_path().parent / "lock"
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    with open(lock_path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def is_running() -> bool:
    """Returns whether there is a cluster that somebody has started and that works."""
    return {EXISTING: lambda: True, KIND: kind.exists, OWN: node.is_healthy}[chosen_provider()]()


def build_programs() -> None:
    """Compiles what the cluster will consist of, which takes minutes the first time."""
    provider = chosen_provider()
    for name in {OWN: programs.FROM_GO, KIND: ("kind",)}.get(provider, ()):
        go_binaries.ensure(name)


def ensure_cluster() -> Cluster:
    """Returns a cluster that takes pods, after starting what of it does not run."""
    provider = chosen_provider()
    if provider == EXISTING:
        return Cluster(Path(os.environ["KUBECONFIG"]), provider)
    with exclusive():
        if provider == KIND:
            if kind.start():
                say("kind has created the cluster nlocalmodels")
            return Cluster(kind.kubeconfig_path(), provider)
        cluster = Cluster(layout.KUBECONFIG, provider)
        if not node.is_healthy():
            node.start(kubectl_path(provider), say)
        return cluster


def stop_cluster() -> None:
    """Removes the cluster that `ensure_cluster` made, with everything in it; an existing one is left alone."""
    provider = chosen_provider()
    if provider == EXISTING:
        say("the cluster that KUBECONFIG names is not ours to stop")
        return
    with exclusive():
        stopped = kind.stop() if provider == KIND else node.stop()
    say("stopped and removed" if stopped else "there is none")
