"""Starts and stops the test cluster: `python -m cluster build|up|down|status|kubeconfig|load ARCHIVE...|volumes COUNT`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from cluster import node
from cluster.cluster import OWN, Cluster, build_programs, chosen_provider, ensure_cluster, kubectl_path, say, stop_cluster
from cluster.commands import ClusterError

NUM_VOLUMES = 4


def up() -> None:
    if chosen_provider() == OWN and node.is_healthy():
        say("it runs and is healthy")
        cluster = ensure_cluster()
    else:
        start = time.monotonic()
        cluster = ensure_cluster()
        cluster.create_rwx_volumes(NUM_VOLUMES)
        say(f"ready after {time.monotonic() - start:.0f} s")
    print(f"export KUBECONFIG={cluster.kubeconfig}")
    print(f"export PATH={kubectl_path(cluster.provider).parent}:$PATH")


def status() -> None:
    print(f"provider: {chosen_provider()}")
    if chosen_provider() == OWN:
        for name, pid in node.states().items():
            print(f"  {name:24} {f'pid {pid}' if pid else 'not running'}")
        if not node.is_healthy():
            raise ClusterError("not running, or not healthy; `make cluster` starts what is dead.")
    print(running_cluster().kubectl("get", "nodes", "--output", "wide"), end="")


def running_cluster() -> Cluster:
    """Returns the cluster, which must run: a question shall not start one."""
    if chosen_provider() == OWN and not node.is_healthy():
        raise ClusterError("the cluster does not run; start it with `make cluster`.")
    return ensure_cluster()


def main() -> None:
    parser = argparse.ArgumentParser(prog="cluster", description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="compile what it consists of, and start nothing")
    commands.add_parser("up", help="start what of it does not run")
    commands.add_parser("down", help="stop it and remove every trace")
    commands.add_parser("status", help="say what runs")
    commands.add_parser("kubeconfig", help="print the path of its kubeconfig")
    load = commands.add_parser("load", help="bring image archives (OCI or docker save) into its node")
    load.add_argument("archives", nargs="+", type=Path, metavar="ARCHIVE")
    volumes = commands.add_parser("volumes", help="have this many free ReadWriteMany volumes")
    volumes.add_argument("count", type=int)
    arguments = parser.parse_args()
    try:
        match arguments.command:
            case "build":
                build_programs()
            case "up":
                up()
            case "down":
                stop_cluster()
            case "status":
                status()
            case "kubeconfig":
                print(running_cluster().kubeconfig)
            case "load":
                running_cluster().load_images(arguments.archives)
            case "volumes":
                running_cluster().create_rwx_volumes(arguments.count)
    except ClusterError as error:
        sys.exit(f"[cluster] {error}")


if __name__ == "__main__":
    main()
