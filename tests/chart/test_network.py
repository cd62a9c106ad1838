"""Who may talk to whom, and how the server is reached: network policies, Service, Ingress, HTTPRoute, scaling, disruption."""

from __future__ import annotations

from typing import Any

import pytest

from support.chart import KUBE_VERSION, STRATEGIES, Document, Manifests, Values, labels_match, merged, only, own, render

PVC = STRATEGIES["pvc"]
DNS = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]
# Which component fetches, by strategy.
FETCHERS = {"emptyDir": "server", "pvc": "downloader"}


def of(strategy: str, *layers: Values) -> Manifests:
    return render(merged(STRATEGIES[strategy], *layers), kube_version=KUBE_VERSION)


def policies(manifests: Manifests, component: str) -> list[Document]:
    """Returns the specs of all policies that select the component's pods."""
    labels = manifests.pod(component).labels
    specs = [policy["spec"] for policy in manifests.all("NetworkPolicy")]
    return [spec for spec in specs if labels_match(spec["podSelector"]["matchLabels"], labels)]


def policy(manifests: Manifests, component: str) -> Document:
    (found,) = policies(manifests, component)
    return found


def egress_ports(strategy: str, *layers: Values) -> set[int]:
    """Returns the TCP ports, other than that of name resolution, that whoever fetches may reach."""
    rules = policy(of(strategy, *layers), FETCHERS[strategy])["egress"]
    assert rules[0] == {"ports": DNS}
    return {entry["port"] for rule in rules[1:] for entry in rule["ports"]}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_pod_has_one_policy_for_both_directions(strategy: str) -> None:
    manifests = of(strategy)
    for pod in manifests.pods():
        assert policy(manifests, pod.labels["app.kubernetes.io/component"])["policyTypes"] == ["Ingress", "Egress"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_policies_of_another_release_do_not_count(strategy: str) -> None:
    pods = render(STRATEGIES[strategy], release="other", kube_version=KUBE_VERSION).pods()
    for network_policy in of(strategy).all("NetworkPolicy"):
        assert not [pod for pod in pods if labels_match(network_policy["spec"]["podSelector"]["matchLabels"], pod.labels)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_server_takes_requests_on_its_port_alone(strategy: str) -> None:
    assert policy(of(strategy), "server")["ingress"] == [{"ports": [{"port": "http", "protocol": "TCP"}]}]


def test_who_may_ask_as_told() -> None:
    peers = [{"namespaceSelector": {"matchLabels": {"team": "ml"}}}, {"ipBlock": {"cidr": "10.0.0.0/8"}}]
    (rule,) = policy(render({"networkPolicy": {"from": peers}}), "server")["ingress"]
    assert rule["from"] == peers


@pytest.mark.parametrize("strategy", ["pvc", "baked", "baked-volume"])
def test_server_that_fetches_nothing_reaches_nothing(strategy: str) -> None:
    """Neither sources nor name resolution: a model cannot send out what it was asked."""
    assert policy(of(strategy), "server")["egress"] == []
    told: Values = {"networkPolicy": {"extraEgress": [{"ports": [{"port": 8443}]}]}, "download": {"endpoint": "https://m:8443"}}
    assert policy(of(strategy, told), "server")["egress"] == []


def test_jobs_take_no_requests() -> None:
    for component in ("downloader", "uploader"):
        assert policy(render(PVC), component)["ingress"] == []
    assert policy(render(PVC), "uploader")["egress"] == []


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_test_reaches_the_server_alone(strategy: str) -> None:
    manifests = of(strategy)
    spec = policy(manifests, "test")
    names, to_server = spec["egress"]
    assert names == {"ports": DNS}
    assert spec["ingress"] == []
    (peer,) = to_server["to"]
    reached = [pod.owner for pod in manifests.pods() if labels_match(peer["podSelector"]["matchLabels"], pod.labels)]
    assert reached == [manifests.pod("server").owner]


@pytest.mark.parametrize("strategy", FETCHERS)
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, {443}),
        (only(m=own(source="http://host/m.gguf")), {80, 443}),
        (only(m=own(source="http://host:8080/folder/m.gguf")), {8080, 443}),
        (only(m=own(source="https://user:1234@host:8443/m.gguf?a=b:99#c:98")), {8443, 443}),
        (only(m=own(source="http://[fd00::1]:9000/m.gguf")), {9000, 443}),
        (only(m=own(source="http://[fd00::1]/m.gguf")), {80, 443}),
        (only(m=own(mirrors=["http://a:81/m.gguf", "https://b:82/m.gguf"])), {81, 82, 443}),
        (
            only(
                m=own(
                    file="m-00001-of-00002.gguf",
                    shards=[
                        {
                            "file": "m-00002-of-00002.gguf",
                            "source": "http://a:83/2",
                            "mirrors": ["http://b:84/2"],
                            "sha256": "b" * 64,
                            "sizeBytes": 1,
                        }
                    ],
                )
            ),
            {83, 84, 443},
        ),
        ({"download": {"endpoint": "http://mirror:8081/hub"}}, {8081, 443}),
        (only(m=own(source="oci://registry:5000/team/m:v1", file="m.gguf")), {5000, 443}),
        (
            merged(only(m=own(source="oci://plain/team/m:v1", file="m.gguf")), {"download": {"oci": {"plainHttp": ["plain"]}}}),
            {80, 443},
        ),
        ({"download": {"s3": {"endpoint": "http://minio.storage:9000"}}}, {9000, 443}),
        ({"download": {"proxy": {"http": "http://user:pw@proxy:3128", "https": "http://proxy:3129/"}}}, {3128, 3129, 443}),
    ],
)
def test_whoever_fetches_reaches_the_ports_of_the_sources(strategy: str, values: Values, expected: set[int]) -> None:
    assert egress_ports(strategy, values) == expected


@pytest.mark.parametrize("strategy", FETCHERS)
def test_whoever_fetches_reaches_no_credentials_of_a_cloud(strategy: str) -> None:
    rule = policy(of(strategy), FETCHERS[strategy])["egress"][1]
    assert [(peer["ipBlock"]["cidr"], peer["ipBlock"]["except"]) for peer in rule["to"]] == [
        ("0.0.0.0/0", ["169.254.0.0/16"]),
        ("::/0", ["fe80::/10", "fd00:ec2::/32"]),
    ]


def test_whoever_fetches_nothing_reaches_nothing() -> None:
    assert policy(render(merged(PVC, {"download": {"offline": True}})), "downloader")["egress"] == [{"ports": DNS}]


@pytest.mark.parametrize("strategy", FETCHERS)
def test_further_egress_is_for_whoever_fetches(strategy: str) -> None:
    extra = {"to": [{"namespaceSelector": {}}], "ports": [{"port": 9000, "protocol": "TCP"}]}
    manifests = of(strategy, {"networkPolicy": {"extraEgress": [extra]}})
    assert policy(manifests, FETCHERS[strategy])["egress"][-1] == extra
    assert str(manifests.all("NetworkPolicy")).count("9000") == 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_policies_may_be_left_out(strategy: str) -> None:
    assert of(strategy, {"networkPolicy": {"enabled": False}}).all("NetworkPolicy") == []


def test_service_by_default() -> None:
    spec = render().one("Service")["spec"]
    assert spec["type"] == "ClusterIP"
    assert spec["ports"] == [{"name": "http", "port": 11434, "targetPort": "http", "protocol": "TCP", "appProtocol": "http"}]


def test_service_as_told() -> None:
    service = render({"service": {"type": "LoadBalancer", "port": 80, "annotations": {"a": "b"}}}).one("Service")
    assert service["spec"]["type"] == "LoadBalancer"
    assert (service["spec"]["ports"][0]["port"], service["spec"]["ports"][0]["targetPort"]) == (80, "http")
    assert service["metadata"]["annotations"] == {"a": "b"}


def test_target_port_is_the_server_s() -> None:
    (port,) = render().pod("server").container("server")["ports"]
    assert port["name"] == render().one("Service")["spec"]["ports"][0]["targetPort"]


def test_nothing_is_published_by_default() -> None:
    assert not render().all("Ingress") + render().all("HTTPRoute") + render().all("HorizontalPodAutoscaler")


def test_ingress() -> None:
    told: dict[str, Any] = {
        "enabled": True,
        "className": "nginx",
        "annotations": {"a": "b"},
        "hosts": ["one.example.com", "two.example.com"],
        "path": "/models",
        "tls": [{"secretName": "cert", "hosts": ["one.example.com"]}],
    }
    ingress = render({"ingress": told}).one("Ingress")
    backend = {"service": {"name": "r-nlocalmodels", "port": {"name": "http"}}}
    paths = [{"path": "/models", "pathType": "Prefix", "backend": backend}]
    assert ingress["metadata"]["annotations"] == {"a": "b"}
    assert ingress["spec"] == {
        "ingressClassName": "nginx",
        "tls": told["tls"],
        "rules": [{"host": host, "http": {"paths": paths}} for host in told["hosts"]],
    }


def test_ingress_for_every_host() -> None:
    (rule,) = render({"ingress": {"enabled": True}}).one("Ingress")["spec"]["rules"]
    assert set(rule) == {"http"}
    assert rule["http"]["paths"][0]["path"] == "/"


def test_http_route() -> None:
    told: dict[str, Any] = {
        "enabled": True,
        "annotations": {"a": "b"},
        "parentRefs": [{"name": "gateway", "namespace": "gateways"}],
        "hostnames": ["models.example.com"],
        "path": "/v1",
    }
    route = render({"httpRoute": told, "service": {"port": 80}}).one("HTTPRoute")
    assert route["metadata"]["annotations"] == {"a": "b"}
    assert route["spec"] == {
        "parentRefs": told["parentRefs"],
        "hostnames": told["hostnames"],
        "rules": [
            {
                "matches": [{"path": {"type": "PathPrefix", "value": "/v1"}}],
                "timeouts": {"request": "0s"},
                "backendRefs": [{"name": "r-nlocalmodels", "port": 80}],
            }
        ],
    }


def test_autoscaler_decides_the_replicas_alone() -> None:
    """With both, every upgrade would undo what the autoscaler did."""
    told = {"enabled": True, "minReplicas": 3, "maxReplicas": 9, "targetCPUUtilizationPercentage": 55}
    manifests = render({"autoscaling": told})
    assert "replicas" not in manifests.one("Deployment")["spec"]
    spec = manifests.one("HorizontalPodAutoscaler")["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (3, 9)
    assert spec["metrics"] == [
        {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 55}}}
    ]
    assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "r-nlocalmodels"}


@pytest.mark.parametrize("most", [2, "25%"])
def test_disruption_budget(most: int | str) -> None:
    assert render().one("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    manifests = render({"podDisruptionBudget": {"maxUnavailable": most}})
    assert manifests.one("PodDisruptionBudget")["spec"]["maxUnavailable"] == most
    assert render({"podDisruptionBudget": {"enabled": False}}).all("PodDisruptionBudget") == []
