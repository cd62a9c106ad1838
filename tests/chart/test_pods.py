"""The pods: what they may do, what they are told, and what a user can change of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nlocalmodels_downloader.cli import main
from nlocalmodels_downloader.settings import Settings, read_settings
from nlocalmodels_server.api import health
from support.chart import DIGEST, KUBE_VERSION, MIB, STRATEGIES, Document, Manifests, Values, merged, render

PVC = STRATEGIES["pvc"]
# Which container fetches, by strategy.
FETCHERS = {"emptyDir": "server", "pvc": "downloader"}
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
# What the restricted profile of Pod Security allows (https://kubernetes.io/docs/concepts/security/pod-security-standards/).
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret"}


def of(strategy: str, *layers: Values) -> Manifests:
    return render(merged(STRATEGIES[strategy], *layers), kube_version=KUBE_VERSION)


def entries(strategy: str, *layers: Values) -> dict[str, Document]:
    """Returns the environment of whoever fetches, each variable as it is declared."""
    container = of(strategy, *layers).pod(FETCHERS[strategy]).container("model-downloader")
    found = {entry["name"]: entry for entry in container["env"]}
    assert len(found) == len(container["env"]), "a variable stands twice"
    return found


def settings(strategy: str, *layers: Values) -> Settings:
    """Returns what the downloader makes of its environment."""
    return read_settings({name: entry["value"] for name, entry in entries(strategy, *layers).items() if "value" in entry})


def server(values: Values) -> Document:
    return render(values).pod("server").container("server")


@pytest.mark.parametrize(
    ("strategy", "owners"),
    [
        ("emptyDir", ["Deployment", "Pod"]),
        ("pvc", ["Deployment", "Job", "Job", "Pod"]),
        ("baked", ["Deployment", "Pod"]),
        ("baked-volume", ["Deployment", "Pod"]),
    ],
)
def test_which_pods_a_strategy_has(strategy: str, owners: list[str]) -> None:
    assert sorted(pod.owner.split("/")[0] for pod in of(strategy).pods()) == owners


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_pods_keep_to_the_restricted_profile(strategy: str) -> None:
    for pod in of(strategy).pods():
        spec = pod.spec
        assert not {"hostNetwork", "hostPID", "hostIPC", "ephemeralContainers", "hostUsers"} & set(spec), pod.owner
        assert not {"sysctls", "seLinuxOptions", "windowsOptions", "appArmorProfile"} & set(spec["securityContext"]), pod.owner
        assert spec["securityContext"]["runAsNonRoot"] is True, pod.owner
        assert spec["securityContext"]["runAsUser"] > 0, pod.owner
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, pod.owner
        for volume in spec.get("volumes", []):
            assert set(volume) - {"name"} <= VOLUMES, pod.owner
        for container in pod.containers:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, pod.owner
            assert not [port for port in container.get("ports", []) if "hostPort" in port], pod.owner
            for probe in PROBES:
                assert "host" not in container.get(probe, {}).get("httpGet", {}), pod.owner


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_pods_have_no_token_and_are_told_of_no_other_service(strategy: str) -> None:
    for owner, spec in of(strategy).pod_specs().items():
        assert (spec["automountServiceAccountToken"], spec["enableServiceLinks"]) == (False, False), owner
    assert of(strategy).one("ServiceAccount")["automountServiceAccountToken"] is False


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_container_has_bounds(strategy: str) -> None:
    for pod in of(strategy).pods():
        for container in pod.containers:
            for kind in ("requests", "limits"):
                assert set(container["resources"][kind]) == {"cpu", "memory", "ephemeral-storage"}, pod.owner


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_mount_has_its_volume(strategy: str) -> None:
    for pod in of(strategy, {"download": {"caBundle": {"configMap": "ca"}}}).pods():
        volumes = [volume["name"] for volume in pod.spec.get("volumes", [])]
        mounted = {entry["name"] for container in pod.containers for entry in container.get("volumeMounts", [])}
        assert len(volumes) == len(set(volumes))
        assert set(volumes) == mounted, pod.owner


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_commands_are_those_of_the_downloader(strategy: str, capsys: pytest.CaptureFixture[str]) -> None:
    for pod in of(strategy).pods():
        for container in pod.containers:
            if "args" in container:
                with pytest.raises(SystemExit) as stopped:
                    main([*container["args"], "--help"])
                assert stopped.value.code == 0
                options = capsys.readouterr().out
                assert not [text for text in container["args"] if text.startswith("--") and text not in options]


def test_probes_ask_routes_that_the_server_has() -> None:
    container = server({})
    asked = [container[probe]["httpGet"] for probe in PROBES]
    assert asked == [{"path": path, "port": "http"} for path in ("/startupz", "/livez", "/readyz")]
    code = Path(health.__file__).read_text()
    assert [probe["path"] for probe in asked if f'Route("{probe["path"]}"' not in code] == []
    assert container["ports"] == [{"name": "http", "containerPort": 11434}]


def test_server_is_told_by_the_variables_of_the_guide() -> None:
    name = render().one("ConfigMap")["metadata"]["name"]
    assert server({})["env"] == [
        {"name": "MODEL_PATH", "valueFrom": {"configMapKeyRef": {"name": name, "key": "MODEL_PATH"}}},
        {"name": "DEFAULT_MODEL", "valueFrom": {"configMapKeyRef": {"name": name, "key": "DEFAULT_MODEL", "optional": True}}},
        {"name": "SERVER_CONFIG", "value": "/etc/nlocalmodels/server.yaml"},
    ]


@pytest.mark.parametrize("strategy", FETCHERS)
def test_token_reaches_the_downloader_alone(strategy: str) -> None:
    told: Values = {"download": {"hfToken": {"existingSecret": "hub", "key": "read"}}}
    assert entries(strategy, told)["HF_TOKEN"] == {
        "name": "HF_TOKEN",
        "valueFrom": {"secretKeyRef": {"name": "hub", "key": "read"}},
    }
    manifests = of(strategy, told)
    holders = [container["name"] for pod in manifests.pods() for container in pod.containers if "HF_TOKEN" in str(container)]
    assert holders == ["model-downloader"]
    assert manifests.text.count("secretKeyRef") == 1


@pytest.mark.parametrize("strategy", FETCHERS)
def test_credentials_of_an_object_store_reach_the_downloader_alone(strategy: str) -> None:
    told: Values = {"download": {"s3": {"existingSecret": "bucket"}}}
    found = entries(strategy, told)
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert found[key] == {"name": key, "valueFrom": {"secretKeyRef": {"name": "bucket", "key": key}}}
    assert found["AWS_SESSION_TOKEN"]["valueFrom"]["secretKeyRef"]["optional"] is True
    manifests = of(strategy, told)
    holders = [container["name"] for pod in manifests.pods() for container in pod.containers if "AWS_" in str(container)]
    assert holders == ["model-downloader"]
    assert "AWS_" not in of(strategy).text


@pytest.mark.parametrize("strategy", FETCHERS)
def test_users_of_registries_are_mounted_where_the_downloader_looks(strategy: str) -> None:
    manifests = of(strategy, {"download": {"oci": {"existingSecret": "registries"}}})
    volumes = [volume for pod in manifests.pods() for volume in pod.spec.get("volumes", [])]
    (volume,) = [volume for volume in volumes if volume["name"] == "registries"]
    items = [{"key": ".dockerconfigjson", "path": "config.json"}]
    assert volume == {"name": "registries", "secret": {"secretName": "registries", "items": items}}
    mounting = [
        container["name"]
        for pod in manifests.pods()
        for container in pod.containers
        if "/etc/nlocalmodels-registries" in [mount["mountPath"] for mount in container.get("volumeMounts", [])]
    ]
    assert mounting == ["model-downloader"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_token_is_nowhere_when_nothing_is_fetched(strategy: str) -> None:
    told: Values = {"download": {"hfToken": {"existingSecret": "hub"}, "offline": True}}
    local: Values = {"models": {"set": "none", "add": {"qwen3-0.6b": {"source": "file:///mnt/m.gguf"}}}}
    assert "HF_TOKEN" not in of(strategy, told, local).text
    if strategy not in FETCHERS:
        assert "hub" not in of(strategy, {"download": {"hfToken": {"existingSecret": "hub"}}}).text


@pytest.mark.parametrize("strategy", FETCHERS)
def test_settings_of_the_download_are_what_the_downloader_reads(strategy: str) -> None:
    told = {
        "endpoint": "https://mirror.example.com",
        "s3": {"endpoint": "http://minio.storage:9000", "region": "eu-central-1"},
        "oci": {"existingSecret": "registries", "plainHttp": ["registry:5000", "other"]},
        "attempts": 3,
        "connections": 5,
        "stallSeconds": 7,
        "maxBandwidth": "10Mi",
        "extraEnv": [{"name": "DOWNLOAD_PROGRESS_SECONDS", "value": "2"}],
    }
    read = settings(strategy, {"download": told})
    assert read.hub_endpoint == "https://mirror.example.com"
    assert (read.s3_endpoint, read.s3_region) == ("http://minio.storage:9000", "eu-central-1")
    assert read.docker_config == Path("/etc/nlocalmodels-registries/config.json")
    assert read.plain_http_registries == {"registry:5000", "other"}
    assert (read.num_attempts, read.num_connections, read.stall_seconds, read.progress_seconds) == (3, 5, 7.0, 2.0)
    assert read.max_bytes_per_second == 10 * MIB
    assert read.is_offline is False
    assert read.is_durable is (strategy == "pvc")
    assert read.volume_limit_bytes == (20480 * MIB if strategy == "emptyDir" else None)


@pytest.mark.parametrize("strategy", FETCHERS)
def test_defaults_of_the_chart_are_those_of_the_downloader(strategy: str) -> None:
    assert settings(strategy).num_attempts == Settings().num_attempts
    assert settings(strategy).num_connections == Settings().num_connections
    assert settings(strategy).stall_seconds == Settings().stall_seconds
    assert settings(strategy).hub_endpoint == Settings().hub_endpoint
    assert settings(strategy).s3_endpoint is Settings().s3_endpoint
    assert settings(strategy).max_bytes_per_second is Settings().max_bytes_per_second


def test_offline_is_what_the_downloader_reads() -> None:
    assert settings("pvc", {"download": {"offline": True}}).is_offline is True


@pytest.mark.parametrize("strategy", FETCHERS)
def test_every_variable_is_one_that_the_downloader_reads_but_for_those_of_its_http_library(strategy: str) -> None:
    told: Values = {
        "download": {
            "endpoint": "https://mirror.example.com",
            "maxBandwidth": "10Mi",
            "hfToken": {"existingSecret": "hub"},
            "proxy": {"http": "http://p:1", "https": "http://p:2", "noProxy": ["a"]},
            "caBundle": {"configMap": "ca"},
        }
    }
    read: set[str] = set()

    class Environment(dict[str, str]):
        def get(self, key: str, default: Any = None) -> Any:
            read.add(key)
            return default

    read_settings(Environment())
    offline: Values = {"download": {"offline": True}}
    set_by_the_chart = set(entries(strategy, told)) | set(entries("pvc", offline))
    assert set_by_the_chart - read == {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE"}


@pytest.mark.parametrize("strategy", FETCHERS)
def test_proxy_of_the_download(strategy: str) -> None:
    proxy = {"http": "http://proxy:3128", "https": "http://proxy:3129", "noProxy": [".svc", "10.0.0.0/8"]}
    found = {name: entry.get("value") for name, entry in entries(strategy, {"download": {"proxy": proxy}}).items()}
    assert (found["HTTP_PROXY"], found["HTTPS_PROXY"], found["NO_PROXY"]) == (
        "http://proxy:3128",
        "http://proxy:3129",
        ".svc,10.0.0.0/8",
    )
    assert not {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "HF_ENDPOINT", "REQUESTS_CA_BUNDLE", "HF_TOKEN"} & set(
        entries(strategy)
    )
    assert "PROXY" not in str(of(strategy, {"download": {"proxy": proxy}}).pod("server").container("server"))


@pytest.mark.parametrize("strategy", FETCHERS)
def test_certificates_of_the_download(strategy: str) -> None:
    told: Values = {"download": {"caBundle": {"configMap": "company-ca", "key": "root.pem"}}}
    assert entries(strategy, told)["REQUESTS_CA_BUNDLE"]["value"] == "/etc/nlocalmodels-ca/root.pem"
    pod = of(strategy, told).pod(FETCHERS[strategy])
    assert pod.volume("ca-bundle") == {"configMap": {"name": "company-ca"}}
    mounts = pod.container("model-downloader")["volumeMounts"]
    assert {"name": "ca-bundle", "mountPath": "/etc/nlocalmodels-ca", "readOnly": True} in mounts
    assert "ca-bundle" not in str(of(strategy, told).pod("server").container("server"))


@pytest.mark.parametrize("strategy", FETCHERS)
def test_further_variables_of_the_download(strategy: str) -> None:
    extra = {"name": "DOWNLOAD_LEASE_SECONDS", "value": "30"}
    assert entries(strategy, {"download": {"extraEnv": [extra]}})["DOWNLOAD_LEASE_SECONDS"] == extra
    assert "DOWNLOAD_LEASE" not in str(of(strategy, {"download": {"extraEnv": [extra]}}).pod("server").container("server"))


@pytest.mark.parametrize("strategy", FETCHERS)
def test_further_volumes_of_the_download(strategy: str) -> None:
    volume, mount = {"name": "bundle", "configMap": {"name": "bundle"}}, {"name": "bundle", "mountPath": "/bundle"}
    told: Values = {"download": {"extraVolumes": [volume], "extraVolumeMounts": [mount]}}
    pod = of(strategy, told).pod(FETCHERS[strategy])
    assert pod.volume("bundle") == {"configMap": {"name": "bundle"}}
    assert mount in pod.container("model-downloader")["volumeMounts"]
    assert mount not in of(strategy, told).pod("server").container("server")["volumeMounts"]


def test_what_only_waits_or_receives_is_not_told_how_to_fetch() -> None:
    told: Values = {
        "download": {"hfToken": {"existingSecret": "hub"}, "endpoint": "https://mirror", "caBundle": {"configMap": "ca"}}
    }
    manifests = render(merged(PVC, told))
    waits, receives = manifests.pod("server").container("model-wait"), manifests.pod("uploader").container("model-uploader")
    assert [entry["name"] for entry in waits["env"]] == ["POD_UID"]
    assert [entry["name"] for entry in receives["env"]] == ["POD_UID", "DOWNLOAD_DURABLE"]


def test_resources_and_marks_of_the_download() -> None:
    download = {
        "resources": {"limits": {"memory": "512Mi"}},
        "podLabels": {"sidecar.istio.io/inject": "true", "a": "b"},
        "podAnnotations": {"c": "d"},
    }
    pod = render(merged(PVC, {"download": download})).pod("downloader")
    assert pod.container("model-downloader")["resources"]["limits"] == {
        "cpu": "2",
        "memory": "512Mi",
        "ephemeral-storage": "256Mi",
    }
    assert pod.labels.items() >= {"sidecar.istio.io/inject": "true", "a": "b"}.items()
    assert pod.annotations["c"] == "d"
    assert "sidecar.istio.io/inject" not in render(PVC).pod("server").labels
    assert render(PVC).pod("downloader").labels["sidecar.istio.io/inject"] == "false"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_open_shift_chooses_the_ids(strategy: str) -> None:
    nulls: Values = {"podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None}}
    for pod in of(strategy, nulls).pods():
        assert pod.spec["securityContext"] == {
            "runAsNonRoot": True,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        }


def test_security_contexts_as_told() -> None:
    values: Values = {"podSecurityContext": {"runAsUser": 1001}, "securityContext": {"readOnlyRootFilesystem": False}}
    for pod in render(merged(PVC, values)).pods():
        assert pod.spec["securityContext"]["runAsUser"] == 1001
        assert {container["securityContext"]["readOnlyRootFilesystem"] for container in pod.containers} == {False}


def test_what_is_added_to_the_server() -> None:
    values: Values = {
        "extraEnv": [{"name": "A", "value": "1"}],
        "extraVolumes": [{"name": "scratch", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
        "extraInitContainers": [{"name": "first", "image": "busybox"}],
        "extraContainers": [{"name": "beside", "image": "busybox"}],
    }
    for strategy in STRATEGIES:
        pod = of(strategy, values).pod("server")
        before = [container["name"] for container in of(strategy).pod("server").spec.get("initContainers", [])]
        assert [container["name"] for container in pod.spec["initContainers"]] == [*before, "first"]
        assert [container["name"] for container in pod.spec["containers"]] == ["server", "beside"]
        assert pod.volume("scratch") == {"emptyDir": {}}
        assert values["extraVolumeMounts"][0] in pod.container("server")["volumeMounts"]
        assert values["extraEnv"][0] in pod.container("server")["env"]
        others = [other for other in of(strategy, values).pods() if other.owner != pod.owner]
        assert others == [other for other in of(strategy).pods() if other.owner != pod.owner]


def test_lifecycle_as_told_instead_of_the_pause() -> None:
    hook = {"preStop": {"httpGet": {"path": "/drain", "port": 80}}}
    assert server({"lifecycle": hook})["lifecycle"] == hook


def test_placement() -> None:
    spec = render().pod("server").spec
    (soft,) = spec["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    selector = render().one("Deployment")["spec"]["selector"]
    assert soft["podAffinityTerm"] == {"topologyKey": "kubernetes.io/hostname", "labelSelector": selector}
    (zones,) = spec["topologySpreadConstraints"]
    assert (zones["topologyKey"], zones["labelSelector"]) == ("topology.kubernetes.io/zone", selector)
    assert not {"nodeSelector", "tolerations", "priorityClassName", "runtimeClassName"} & set(spec)


def test_placement_as_told() -> None:
    told: Values = {
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "models", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "topologySpreadConstraints": [{"maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}],
        "priorityClassName": "high",
        "runtimeClassName": "gvisor",
    }
    spec = render(told).pod("server").spec
    assert {key: spec[key] for key in told} == told


def test_pod_marks_as_told() -> None:
    pod = render({"podAnnotations": {"a": "b"}, "podLabels": {"c": "d"}}).pod("server")
    assert pod.annotations.items() >= {"a": "b", "kubectl.kubernetes.io/default-container": "server"}.items()
    assert pod.labels["c"] == "d"


def test_update_never_takes_a_pod_before_its_successor_serves() -> None:
    assert render().one("Deployment")["spec"]["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
    }


def test_update_as_told() -> None:
    recreate = {"type": "Recreate"}
    assert render({"updateStrategy": recreate}).one("Deployment")["spec"]["strategy"] == recreate


def test_replicas_as_told() -> None:
    assert render().one("Deployment")["spec"]["replicas"] == 2
    assert render({"replicas": 0}).one("Deployment")["spec"]["replicas"] == 0


def images(manifests: Manifests) -> dict[str, tuple[str, str]]:
    return {
        container["name"]: (container["image"], container["imagePullPolicy"])
        for pod in manifests.pods()
        for container in pod.containers
    }


def test_images_by_tag_are_always_pulled() -> None:
    server_image, downloader = (
        ("plturrell/nservices:nLocalModels", "Always"),
        ("plturrell/nservices:nLocalModels-downloader", "Always"),
    )
    assert images(render(PVC)) == {
        "server": server_image,
        "completions": server_image,
        "model-wait": downloader,
        "model-downloader": downloader,
        "model-uploader": downloader,
    }


def test_images_by_digest_are_pulled_once() -> None:
    values: Values = {
        "image": {name: {"repository": f"example.com/{name}", "digest": DIGEST} for name in ("server", "downloader")}
    }
    assert set(images(render(merged(PVC, values))).values()) == {
        (f"example.com/server@{DIGEST}", "IfNotPresent"),
        (f"example.com/downloader@{DIGEST}", "IfNotPresent"),
    }


def test_pull_policy_as_told() -> None:
    values: Values = {"image": {"server": {"pullPolicy": "Never"}, "downloader": {"pullPolicy": "IfNotPresent"}}}
    policies = {name: policy for name, (_, policy) in images(render(merged(PVC, values))).items()}
    assert policies == {
        "server": "Never",
        "completions": "Never",
        "model-wait": "IfNotPresent",
        "model-downloader": "IfNotPresent",
        "model-uploader": "IfNotPresent",
    }


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_pull_secrets_are_everywhere(strategy: str) -> None:
    secrets = [{"name": "registry"}]
    for spec in of(strategy, {"imagePullSecrets": secrets}).pod_specs().values():
        assert spec["imagePullSecrets"] == secrets
    assert "imagePullSecrets" not in of(strategy).text


def test_helm_test_is_a_hook_that_is_removed_when_it_passed() -> None:
    annotations = render().one("Pod")["metadata"]["annotations"]
    assert annotations["helm.sh/hook"] == "test"
    assert annotations["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"
    assert render({"tests": {"enabled": False}}).all("Pod") == []
    (container,) = render({"tests": {"timeoutSeconds": 7}, "service": {"port": 80}}).pod("test").spec["containers"]
    told = {entry["name"]: entry["value"] for entry in container["env"]}
    assert told == {"ADDRESS": "http://r-nlocalmodels:80", "MODELS": "gemma-2-2b-it llama-2-7b-chat", "TIMEOUT_SECONDS": "7"}
    compile(container["command"][2], "completions.py", "exec")
