"""storage.strategy=pvc: a Job fills a volume that all pods mount read-only, and a person adds files to it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.gguf_files import write_llama
from support.kubernetes import Kubernetes, Release, commands, notes
from support.source_pod import SourcePod, source_model

Values = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def values(small: Values, storage_class: Callable[[], str]) -> dict[str, Any]:
    add = {"tiny-a": source_model("tiny-a.Q8_0.gguf"), "tiny-b": source_model("tiny-b.F16.gguf")}
    return small(add, storage={"strategy": "pvc", "pvc": {"size": "1Gi", "storageClass": storage_class()}}, replicas=2)


@pytest.fixture(scope="module")
def printed() -> list[str]:
    """What Helm printed of the installation."""
    return []


@pytest.fixture(scope="module")
def installed(
    release: Callable[..., Release], values: dict[str, Any], source: SourcePod, printed: list[str]
) -> Iterator[Release]:
    source.reset()
    installed = release("models")
    printed.append(installed.apply(values))
    yield installed
    installed.uninstall()


def served_ids(release: Release) -> set[str]:
    with release.served() as address:
        return {model["id"] for model in httpx.get(f"{address}/v1/models", timeout=30).json()["data"]}


def test_job_fetches_once_for_all_pods(installed: Release, kubernetes: Kubernetes, source: SourcePod) -> None:
    (job,) = installed.jobs()
    name = f"job/{job['metadata']['name']}"
    kubernetes.kubectl("wait", "--for=condition=complete", name, "-n", installed.namespace, "--timeout=60s")
    assert len(installed.pods()) == 2
    for file in ("tiny-a.Q8_0.gguf", "tiny-b.F16.gguf"):
        assert 467_680 <= source.sent_bytes(file) <= 467_680 + 64


def test_job_carries_the_set_that_the_pods_serve(installed: Release) -> None:
    (job,) = installed.jobs()
    sets = {pod["metadata"]["annotations"]["nlocalmodels.io/set"] for pod in installed.pods()}
    assert sets == {job["metadata"]["annotations"]["nlocalmodels.io/set"]}
    assert next(iter(sets)) in job["metadata"]["name"]


def test_pods_wait_and_serve_from_a_read_only_mount(installed: Release, kubernetes: Kubernetes) -> None:
    assert served_ids(installed) == {"tiny-a", "tiny-b"}
    for pod in installed.pods():
        assert [container["name"] for container in pod["spec"]["initContainers"]] == ["model-wait"]
        result = kubernetes.run(
            "kubectl",
            "exec",
            pod["metadata"]["name"],
            "-n",
            installed.namespace,
            "--",
            "python",
            "-c",
            "open('/app/models/x', 'w')",
        )
        assert "Read-only file system" in result.stderr


def test_notes_commands_watch_the_job_and_ask_a_model(installed: Release, printed: list[str], kubernetes: Kubernetes) -> None:
    log, rollout, forward, models, completion, _ = commands(notes(printed[0]))
    assert re.search(r"set [0-9a-f]{12} is complete: tiny-a, tiny-b", kubernetes.shell(log))
    assert "successfully rolled out" in kubernetes.shell(rollout)
    # The port is forwarded in the background, as in a second terminal.
    script = f"{forward} >/dev/null & trap 'kill $!' EXIT\n"
    script += "for _ in $(seq 100); do curl -sf http://localhost:11434/livez >/dev/null && break; sleep 0.1; done\n"
    listed = json.loads(kubernetes.shell(script + models.replace("curl", "curl -sS")))
    assert {model["id"] for model in listed["data"]} == {"tiny-a", "tiny-b"}
    assert json.loads(kubernetes.shell(script + completion.replace("curl", "curl -sS")))["model"] == "tiny-a"


def test_helm_test_asks_every_model(installed: Release) -> None:
    assert "Phase:          Succeeded" in installed.test()


def test_file_of_a_person_is_uploaded_by_the_notes_commands_and_served(
    installed: Release, values: dict[str, Any], kubernetes: Kubernetes, tmp_path: Path
) -> None:
    file = write_llama(tmp_path / "my-own.Q4_K_M.gguf", seed=9)
    pvc = {**values["storage"]["pvc"], "uploader": {"enabled": True}}
    printed = installed.apply({**values, "storage": {"strategy": "pvc", "pvc": pvc}})
    upload = notes(printed).partition("Upload your own files:")[2]
    script = "\n".join(commands(upload)).replace("FILE.gguf", str(file))
    assert "job/model-uploader" in script
    kubernetes.shell(script)
    kubernetes.kubectl("rollout", "status", f"deployment/{installed.fullname}", "-n", installed.namespace, "--timeout=240s")
    assert served_ids(installed) == {"tiny-a", "tiny-b", "my-own"}
    with installed.served() as address:
        answer = httpx.post(f"{address}/v1/completions", json={"model": "my-own", "prompt": "abc", "max_tokens": 4}, timeout=60)
        assert answer.json()["usage"]["completion_tokens"] == 4


def test_file_copied_beside_the_others_by_any_pod_is_served_after_a_restart(
    installed: Release, kubernetes: Kubernetes, tmp_path: Path
) -> None:
    """The guide's way without the chart's help: a pod with the claim, kubectl cp, rollout restart."""
    file = write_llama(tmp_path / "copied.Q8_0.gguf", seed=10)
    pod = installed.pods()[0]["spec"]
    claim = next(volume["persistentVolumeClaim"] for volume in pod["volumes"] if volume["name"] == "models")
    manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "hand", "namespace": installed.namespace},
        "spec": {
            "securityContext": pod["securityContext"],
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "volumes": [{"name": "models", "persistentVolumeClaim": {"claimName": claim["claimName"]}}],
            "containers": [
                {
                    "name": "hand",
                    "image": pod["containers"][0]["image"],
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sleep", "600"],
                    "securityContext": pod["containers"][0]["securityContext"],
                    "volumeMounts": [{"name": "models", "mountPath": "/app/models"}],
                }
            ],
        },
    }
    kubernetes.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
    n = f"-n {installed.namespace}"
    kubernetes.shell(
        f"kubectl wait {n} --for=condition=Ready pod/hand --timeout=60s && kubectl cp {n} {file} hand:/app/models/"
    )
    kubernetes.shell(f"kubectl delete {n} pod/hand && kubectl rollout restart {n} deployment/{installed.fullname}")
    kubernetes.shell(f"kubectl rollout status {n} deployment/{installed.fullname} --timeout=240s")
    assert "copied" in served_ids(installed)
    listed = kubernetes.shell(f"kubectl exec {n} deployment/{installed.fullname} -- ls /app/models")
    assert listed.split() == ["copied.Q8_0.gguf", "my-own.Q4_K_M.gguf", "tiny-a.Q8_0.gguf", "tiny-b.F16.gguf"]


def test_changed_set_gets_a_job_of_its_own_and_leaves_what_is_no_longer_declared_unserved(
    installed: Release, values: dict[str, Any], source: SourcePod
) -> None:
    source.reset()
    add = {**values["models"]["add"], "tiny-c": {"memory": "256Mi", **source_model("tiny-c.gguf")}}
    del add["tiny-b"]
    installed.apply({**values, "models": {"set": "none", "add": add}})
    assert served_ids(installed) == {"tiny-a", "tiny-c", "my-own", "copied"}
    assert {request["path"] for request in source.requests()} == {"/tiny-c.gguf"}


def test_rollback_fetches_nothing(installed: Release, source: SourcePod) -> None:
    source.reset()
    installed.rollback()
    assert served_ids(installed) == {"tiny-a", "tiny-b", "my-own", "copied"}
    assert source.requests() == []


def test_uninstall_keeps_the_claim_and_installing_again_fetches_nothing(
    installed: Release, values: dict[str, Any], kubernetes: Kubernetes, source: SourcePod
) -> None:
    installed.uninstall()
    kinds = "deployment,replicaset,pod,service,configmap,job,serviceaccount,networkpolicy,pdb"
    kubernetes.wait(
        lambda: not kubernetes.get(kinds, installed.namespace, selector=installed.selector), "the release to go", 120
    )
    assert len(kubernetes.get("pvc", installed.namespace)) == 1
    source.reset()
    installed.apply(values)
    assert served_ids(installed) == {"tiny-a", "tiny-b", "my-own", "copied"}
    assert source.requests() == []
