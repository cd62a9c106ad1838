"""Where the models are kept: who fills the volume, who only reads it, and what makes a new Job."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.chart import (
    CATALOGUE,
    CHART,
    DIGEST,
    GIB,
    KUBE_VERSION,
    MIB,
    STRATEGIES,
    UNDECLARED,
    Manifests,
    Pod,
    Values,
    bytes_of,
    merged,
    only,
    own,
    render,
)

PVC: Values = {"storage": {"strategy": "pvc"}}
RWO: Values = {"replicas": 1, "storage": {"strategy": "pvc", "pvc": {"accessModes": ["ReadWriteOnce"]}}}
UPLOADER: Values = {"storage": {"pvc": {"uploader": {"enabled": True}}}}
BAKED = STRATEGIES["baked"]
BAKED_VOLUME = STRATEGIES["baked-volume"]
SYNC = ["sync", "--config", "/etc/nlocalmodels/downloads.yaml"]
WAIT = ["wait", "--config", "/etc/nlocalmodels/downloads.yaml"]


def pvc(**settings: Any) -> Values:
    return {"storage": {"strategy": "pvc", "pvc": settings}}


def set_bytes(name: str) -> int:
    return sum(int(CATALOGUE["models"][model]["sizeBytes"]) for model in CATALOGUE["sets"][name])


def mount(pod: Pod, container: str, name: str = "models") -> Any:
    (found,) = (entry for entry in pod.container(container)["volumeMounts"] if entry["name"] == name)
    return found


def env(pod: Pod, container: str) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in pod.container(container)["env"]}


def job_name(*layers: Values, chart: Path = CHART) -> str:
    return str(render(merged(PVC, *layers), chart=chart).one("Job")["metadata"]["name"])


def test_empty_dir_is_filled_by_each_pod_before_it_serves() -> None:
    manifests = render()
    assert manifests.all("Job") == []
    assert manifests.all("PersistentVolumeClaim") == []
    pod = manifests.pod("server")
    assert [container["name"] for container in pod.containers] == ["model-downloader", "server"]
    assert pod.container("model-downloader")["args"] == SYNC
    assert mount(pod, "model-downloader") == {"name": "models", "mountPath": "/app/models"}
    assert mount(pod, "server") == {"name": "models", "mountPath": "/app/models", "readOnly": True}
    assert "prune" not in manifests.config("downloads.yaml")


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ({}, 20 * GIB, 20 * GIB),
        (only(m=own()), 20 * GIB, 20 * GIB),
        ({"models": {"set": "enterprise"}}, set_bytes("enterprise") * 11 // 10, set_bytes("enterprise") * 11 // 10 + MIB),
        ({"storage": {"emptyDir": {"sizeLimit": "100Gi"}}}, 100 * GIB, 100 * GIB),
        ({"storage": {"emptyDir": {"sizeLimit": 10**10}}}, 10**10, 10**10 + MIB),
    ],
)
def test_size_limit(values: Values, low: int, high: int) -> None:
    pod = render(values).pod("server")
    limit = bytes_of(pod.volume("models")["emptyDir"]["sizeLimit"])
    assert low <= limit <= high
    # The filesystem does not show the limit, so the downloader is told.
    assert low <= int(env(pod, "model-downloader")["MODEL_PATH_LIMIT_BYTES"]) <= limit


def test_claim_is_filled_by_a_job_and_waited_for() -> None:
    manifests = render(PVC)
    job = manifests.pod("downloader")
    assert job.spec["restartPolicy"] == "Never"
    assert [container["name"] for container in job.containers] == ["model-downloader"]
    assert job.container("model-downloader")["args"] == SYNC
    assert mount(job, "model-downloader") == {"name": "models", "mountPath": "/app/models"}
    assert env(job, "model-downloader")["DOWNLOAD_DURABLE"] == "true"
    assert "MODEL_PATH_LIMIT_BYTES" not in env(job, "model-downloader")
    server = manifests.pod("server")
    assert [container["name"] for container in server.containers] == ["model-wait", "server"]
    assert server.container("model-wait")["args"] == WAIT
    for name in ("model-wait", "server"):
        assert mount(server, name) == {"name": "models", "mountPath": "/app/models", "readOnly": True}
    assert manifests.one("Job")["metadata"]["annotations"]["nlocalmodels.io/set"] == server.annotations["nlocalmodels.io/set"]


def test_job_gives_up_where_another_attempt_would_say_the_same() -> None:
    """The exit codes of the downloader: wrong settings, denied, gone, corrupt, refused; not space, exhausted, stopped."""
    rules = render(PVC).one("Job")["spec"]["podFailurePolicy"]["rules"]
    assert [(rule["action"], rule.get("onExitCodes", {}).get("values")) for rule in rules] == [
        ("Ignore", None),
        ("FailJob", [2, 10, 11, 13, 15]),
    ]
    (container,) = render(PVC).pod("downloader").spec["containers"]
    assert rules[1]["onExitCodes"]["containerName"] == container["name"]


def test_job_is_no_hook() -> None:
    """A hook after the installation would wait for pods that wait for it."""
    assert "helm.sh/hook" not in render(PVC).one("Job")["metadata"].get("annotations", {})


def test_claim_by_default() -> None:
    claim = render(PVC).one("PersistentVolumeClaim")
    assert claim["spec"] == {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "50Gi"}}}
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    for pod in (render(PVC).pod("server"), render(PVC).pod("downloader")):
        assert pod.volume("models") == {"persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}}


def test_claim_as_told() -> None:
    claim = render(pvc(size="2Ti", storageClass="efs", keepOnUninstall=False)).one("PersistentVolumeClaim")
    assert claim["spec"]["storageClassName"] == "efs"
    assert claim["spec"]["resources"] == {"requests": {"storage": "2Ti"}}
    assert "annotations" not in claim["metadata"]


def test_claim_that_is_there_already() -> None:
    manifests = render(merged(pvc(existingClaim="theirs", accessModes=["ReadWriteOnce"], size="1Mi"), UPLOADER))
    assert manifests.all("PersistentVolumeClaim") == []
    for component in ("server", "downloader", "uploader"):
        pod = manifests.pod(component)
        assert pod.volume("models") == {"persistentVolumeClaim": {"claimName": "theirs"}}
        assert "podAffinity" not in pod.spec.get("affinity", {})


@pytest.mark.parametrize("component", ["downloader", "uploader"])
def test_volume_of_one_node_is_filled_where_the_server_is(component: str) -> None:
    manifests = render(merged(RWO, UPLOADER))
    (term,) = manifests.pod(component).spec["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"]["matchLabels"] == manifests.one("Deployment")["spec"]["selector"]["matchLabels"]
    assert "affinity" not in render(merged(PVC, UPLOADER)).pod(component).spec


def test_volume_of_one_node_keeps_a_new_server_on_the_node_of_the_old() -> None:
    """A rolling update without a pod less would wait for ever on another node, which cannot mount the volume."""
    manifests = render(RWO)
    (term,) = manifests.pod("server").spec["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"]["matchLabels"] == manifests.one("Deployment")["spec"]["selector"]["matchLabels"]


def test_placement_of_the_server_holds_for_who_fills_the_claim() -> None:
    placement = {"nodeSelector": {"disk": "fast"}, "tolerations": [{"key": "models", "operator": "Exists"}]}
    manifests = render(merged(PVC, UPLOADER, placement))
    for component in ("server", "downloader", "uploader"):
        spec = manifests.pod(component).spec
        assert {key: spec[key] for key in placement} == placement


def test_prune_is_for_claims() -> None:
    assert render(PVC).config("downloads.yaml")["prune"] == {"keepSets": 2}
    assert render(pvc(prune={"keepSets": 7})).config("downloads.yaml")["prune"] == {"keepSets": 7}
    assert "prune" not in render(pvc(prune={"enabled": False})).config("downloads.yaml")


@pytest.mark.parametrize(
    "values",
    [
        {"models": {"set": "production"}},
        {"models": {"add": {"own": own()}}},
        {"models": {"add": {"llama-2-7b-chat": {"sha256": "b" * 64}}}},
    ],
)
def test_job_has_a_new_name_for_another_set(values: Values) -> None:
    assert job_name(values) != job_name()


@pytest.mark.parametrize(
    "values",
    [
        {"image": {"downloader": {"tag": "next"}}},
        {"image": {"downloader": {"digest": DIGEST}}},
        {"download": {"attempts": 3}},
        {"download": {"resources": {"limits": {"memory": "512Mi"}}}},
        {"download": {"podAnnotations": {"a": "b"}}},
        {"download": {"hfToken": {"existingSecret": "hub"}}},
        {"nodeSelector": {"disk": "fast"}},
        {"podSecurityContext": {"runAsUser": 1001}},
        {"storage": {"pvc": {"existingClaim": "theirs"}}},
    ],
)
def test_job_has_a_new_name_when_it_runs_otherwise(values: Values) -> None:
    """A Job cannot be changed: with its old name the upgrade would fail."""
    assert job_name(values) != job_name()


@pytest.mark.parametrize(
    "values",
    [
        {"models": {"add": {"llama-2-7b-chat": {"source": "https://mirror.example.com/llama.gguf"}}}},
        {"models": {"add": {"llama-2-7b-chat": {"mirrors": ["https://mirror.example.com/llama.gguf"]}}}},
        {"models": {"allowUnverified": True}},
        {"storage": {"pvc": {"prune": {"enabled": False}}}},
    ],
)
def test_job_has_a_new_name_when_it_reads_something_else(values: Values) -> None:
    """A Job that has failed over a dead source would stay as it is when the source is corrected."""
    assert job_name(values) != job_name()


@pytest.mark.parametrize(
    "values",
    [
        {"server": {"numSlots": 4}},
        {"replicas": 3},
        {"image": {"server": {"tag": "next"}}},
        {"resources": {"limits": {"cpu": "8"}}},
        {"commonLabels": {"team": "ml"}},
    ],
)
def test_job_stays_when_only_the_server_changes(values: Values) -> None:
    before, after = (render(merged(PVC, more)).one("Job") for more in ({}, values))
    assert before["metadata"]["name"] == after["metadata"]["name"]
    assert before["spec"] == after["spec"]


def with_versions(folder: Path, version: str, app_version: str) -> Path:
    """Returns a copy of the chart as a later release would have it."""
    chart = folder / CHART.name
    shutil.copytree(CHART, chart)
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    (chart / "Chart.yaml").write_text(yaml.safe_dump({**about, "version": version, "appVersion": app_version}))
    return chart


def test_a_new_version_of_the_chart_alone_changes_no_pod_and_no_job(tmp_path: Path) -> None:
    later = with_versions(tmp_path, "9.8.7", "9.8.7")
    values = merged(PVC, UPLOADER)
    before, after = render(values), render(values, chart=later)
    assert "9.8.7" in after.text
    assert before.pod_specs() == after.pod_specs()
    assert [job["spec"] for job in before.all("Job")] == [job["spec"] for job in after.all("Job")]
    assert before.one("Deployment")["spec"] == after.one("Deployment")["spec"]


def test_uploader_takes_files_in_while_the_server_only_reads() -> None:
    manifests = render(merged(PVC, UPLOADER, {"storage": {"pvc": {"uploader": {"timeoutSeconds": 3600}}}}))
    assert manifests.one("Job", "model-uploader")["spec"]["backoffLimit"] == 0
    pod = manifests.pod("uploader")
    assert pod.owner == "Job/model-uploader"
    assert pod.container("model-uploader")["args"] == ["receive", "--model-path", "/app/models", "--timeout-seconds", "3600"]
    assert mount(pod, "model-uploader") == {"name": "models", "mountPath": "/app/models"}
    assert mount(manifests.pod("server"), "server")["readOnly"] is True


def test_uploader_waits_as_many_whole_seconds_as_told() -> None:
    manifests = render(merged(PVC, UPLOADER, {"storage": {"pvc": {"uploader": {"timeoutSeconds": 2592000}}}}))
    assert manifests.pod("uploader").container("model-uploader")["args"][-1] == "2592000"


def test_uploader_is_named_as_told_and_there_only_when_asked_for() -> None:
    values = merged(PVC, UPLOADER, {"storage": {"pvc": {"uploader": {"name": "inbox"}}}})
    assert "Job/inbox" in render(values).pod_specs()

    assert all(pod.labels["app.kubernetes.io/component"] != "uploader" for pod in render(PVC).pods())


def test_uploader_alone_on_a_claim_that_nothing_is_fetched_to() -> None:
    manifests = render(merged(PVC, UPLOADER, UNDECLARED))
    assert [job["metadata"]["name"] for job in manifests.all("Job")] == ["model-uploader"]


def images(manifests: Manifests) -> dict[str, str]:
    return {f"{pod.owner}/{container['name']}": container["image"] for pod in manifests.pods() for container in pod.containers}


@pytest.mark.parametrize("strategy", ["baked", "baked-volume"])
def test_baked_models_need_no_downloader(strategy: str) -> None:
    manifests = render(STRATEGIES[strategy], kube_version=KUBE_VERSION)
    assert manifests.all("Job") == []
    assert manifests.all("PersistentVolumeClaim") == []
    assert set(manifests.one("ConfigMap")["data"]) == {"MODEL_PATH", "DEFAULT_MODEL", "server.yaml"}
    assert "initContainers" not in manifests.pod("server").spec
    assert not [image for image in images(manifests).values() if "downloader" in image]
    assert "downloads.yaml" not in manifests.text


def test_baked_image_is_the_server_with_its_models() -> None:
    manifests = render(BAKED)
    assert set(images(manifests).values()) == {"example.com/baked:1"}
    pod = manifests.pod("server")
    assert {volume["name"] for volume in pod.spec["volumes"]} == {"config", "tmp"}
    assert {entry["name"] for entry in pod.container("server")["volumeMounts"]} == {"config", "tmp"}


def test_baked_image_is_mounted_as_a_volume() -> None:
    manifests = render(BAKED_VOLUME, kube_version=KUBE_VERSION)
    assert set(images(manifests).values()) == {"plturrell/nservices:nLocalModels"}
    pod = manifests.pod("server")
    assert pod.volume("models") == {"image": {"reference": "example.com/models:1", "pullPolicy": "Always"}}
    assert mount(pod, "server") == {"name": "models", "mountPath": "/app/models", "readOnly": True}


def test_baked_image_by_its_digest() -> None:
    by_digest = {"storage": {"baked": {"image": {"digest": DIGEST}}}}
    server = render(merged(BAKED, by_digest)).pod("server").container("server")
    assert server["image"] == f"example.com/baked@{DIGEST}"
    assert server["imagePullPolicy"] == "IfNotPresent"
    volume = render(merged(BAKED_VOLUME, by_digest), kube_version=KUBE_VERSION).pod("server").volume("models")
    assert volume == {"image": {"reference": f"example.com/models@{DIGEST}", "pullPolicy": "IfNotPresent"}}


def test_baked_image_may_hold_models_that_are_not_declared() -> None:
    manifests = render(merged(BAKED, UNDECLARED))
    assert "models" not in manifests.config("server.yaml")
    assert "DEFAULT_MODEL" not in manifests.one("ConfigMap")["data"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_model_path_is_where_the_models_are(strategy: str) -> None:
    manifests = render(STRATEGIES[strategy], kube_version=KUBE_VERSION)
    assert manifests.one("ConfigMap")["data"]["MODEL_PATH"] == "/app/models"
    for pod in manifests.pods():
        for container in pod.containers:
            for entry in container.get("volumeMounts", []):
                assert entry["name"] != "models" or entry["mountPath"] == "/app/models"
