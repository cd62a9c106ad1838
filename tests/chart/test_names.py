"""Names of objects and labels of pods: valid, unlike those of other releases, and selected by nobody they are not meant for."""

from __future__ import annotations

import re

import pytest
import yaml

from support.chart import CHART, KUBE_VERSION, STRATEGIES, Document, Manifests, Values, labels_match, merged, render

EVERYTHING: Values = {
    "autoscaling": {"enabled": True},
    "ingress": {"enabled": True, "hosts": ["models.example.com"]},
    "httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}]},
}
PVC = merged(EVERYTHING, STRATEGIES["pvc"])
LONGEST = "a" * 53
LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


def of(strategy: str, release: str = "r", **more: str) -> Manifests:
    return render(merged(EVERYTHING, STRATEGIES[strategy], more), release=release, kube_version=KUBE_VERSION)


def identity(document: Document) -> tuple[str, str]:
    return document["kind"], document["metadata"]["name"]


def names(manifests: Manifests) -> set[tuple[str, str]]:
    return {identity(document) for document in manifests.documents}


@pytest.mark.parametrize(
    ("strategy", "release"),
    [
        *((strategy, LONGEST) for strategy in STRATEGIES),
        *(("pvc", release) for release in ("r", "nlocalmodels", "a-very-good-release", "v1.2", "b" * 45 + "-" + "c" * 7)),
    ],
)
def test_every_name_is_a_dns_label_and_stands_once(strategy: str, release: str) -> None:
    found = [identity(document) for document in of(strategy, release).documents]
    assert [name for _, name in found if LABEL.fullmatch(name) is None] == []
    assert len(found) == len(set(found))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_object_has_a_namespace_and_the_labels_that_kubernetes_recommends(strategy: str) -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    for document in of(strategy, "rel").documents:
        metadata = document["metadata"]
        assert metadata["namespace"] == "models"
        component = metadata["labels"]["app.kubernetes.io/component"]
        assert metadata["labels"] == {
            "app": "nlocalmodels" if component == "server" else f"nlocalmodels-{component}",
            "app.kubernetes.io/name": "nlocalmodels",
            "app.kubernetes.io/instance": "rel",
            "app.kubernetes.io/component": component,
            "app.kubernetes.io/part-of": "nlocalmodels",
            "app.kubernetes.io/version": about["appVersion"],
            "app.kubernetes.io/managed-by": "Helm",
            "helm.sh/chart": f"nlocalmodels-{about['version']}",
        }


def test_labels_of_all_objects_are_added_and_pods_are_not_replaced_for_them() -> None:
    plain, labelled = render(PVC), render(merged(PVC, {"commonLabels": {"team": "ml"}}))
    assert all(document["metadata"]["labels"]["team"] == "ml" for document in labelled.documents)
    specs = [document["spec"] for document in plain.all("Deployment") + plain.all("Job")]
    assert specs == [document["spec"] for document in labelled.all("Deployment") + labelled.all("Job")]


@pytest.mark.parametrize(
    ("release", "values", "expected"),
    [
        ("r", {}, "r-nlocalmodels"),
        ("my-nlocalmodels", {}, "my-nlocalmodels"),
        ("nlocalmodels", {}, "nlocalmodels"),
        ("r", {"nameOverride": "llm"}, "r-llm"),
        ("llm", {"nameOverride": "llm"}, "llm"),
        ("r", {"fullnameOverride": "models"}, "models"),
        ("r", {"fullnameOverride": "models", "nameOverride": "llm"}, "models"),
    ],
)
def test_name_of_the_release(release: str, values: Values, expected: str) -> None:
    manifests = render(values, release=release)
    assert {document["metadata"]["name"] for document in manifests.documents} == {expected, f"{expected}-test"}


def test_long_override_is_cut() -> None:
    found = names(render(merged(PVC, {"fullnameOverride": "x" * 70})))
    assert all(LABEL.fullmatch(name) for _, name in found)
    other = names(render(merged(PVC, {"fullnameOverride": "x" * 71})))
    assert found & other == {("Job", "model-uploader")}


# The uploader has the name that the values give it, so two in one namespace need two names.
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a", "b"),
        (LONGEST, "a" * 52 + "b"),
        (LONGEST, "a" * 52),
        ("a" * 40, "a" * 41),
        ("models", "models-2"),
        ("models", "models-test"),
        ("models", "models-downloader"),
        ("models", "models-models"),
    ],
)
def test_two_releases_in_one_namespace_share_no_name(one: str, other: str) -> None:
    values = merged(PVC, {"storage": {"pvc": {"uploader": {"enabled": False}}}})
    assert names(render(values, release=one)) & names(render(values, release=other)) == set()


def test_uploaders_of_two_releases_are_told_apart_by_value() -> None:
    other = merged(PVC, {"storage": {"pvc": {"uploader": {"name": "other-uploader"}}}})
    assert names(render(PVC, release="a")) & names(render(other, release="b")) == set()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_selectors_of_the_server_select_its_pods_alone(strategy: str) -> None:
    manifests = of(strategy)
    selectors = {
        "Service": manifests.one("Service")["spec"]["selector"],
        "Deployment": manifests.one("Deployment")["spec"]["selector"]["matchLabels"],
        "PodDisruptionBudget": manifests.one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
    }
    others = of(strategy, "other").pods()
    for kind, selector in selectors.items():
        for pod in manifests.pods():
            is_server = pod.owner == "Deployment/r-nlocalmodels"
            assert labels_match(selector, pod.labels) is is_server, f"{kind} and {pod.owner}"
        assert not [pod.owner for pod in others if labels_match(selector, pod.labels)], kind


def test_label_of_the_guide_selects_the_server() -> None:
    manifests = render(PVC)
    assert [pod.owner for pod in manifests.pods() if pod.labels["app"] == "nlocalmodels"] == ["Deployment/r-nlocalmodels"]


def test_labels_of_the_pods_are_added() -> None:
    labels = render({"podLabels": {"team": "ml"}}).pod("server").labels
    assert labels == {**render().pod("server").labels, "team": "ml"}


def test_selector_stays_what_it_is_whatever_else_changes() -> None:
    """It cannot be changed once the Deployment is there."""
    changed = {"podLabels": {"a": "b"}, "commonLabels": {"c": "d"}, "models": {"set": "production"}, "replicas": 3}
    before, after = (render(values).one("Deployment")["spec"]["selector"] for values in ({}, changed))
    assert before == after


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_reference_to_an_object_of_the_chart_leads_to_one(strategy: str) -> None:
    manifests = of(strategy, LONGEST)
    found = names(manifests)
    claims = (
        {("PersistentVolumeClaim", manifests.one("PersistentVolumeClaim")["metadata"]["name"])} if strategy == "pvc" else set()
    )
    assert claims <= found
    for pod in manifests.pods():
        assert ("ServiceAccount", pod.spec["serviceAccountName"]) in found
        for volume in pod.spec.get("volumes", []):
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in found
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in claims
        for container in pod.containers:
            for entry in container.get("env", []):
                source = entry.get("valueFrom", {}).get("configMapKeyRef")
                if source:
                    data = manifests.one("ConfigMap", source["name"])["data"]
                    assert source.get("optional") or source["key"] in data
    scaled = manifests.one("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert (scaled["kind"], scaled["name"]) in found
    (rule,) = manifests.one("Ingress")["spec"]["rules"]
    assert ("Service", rule["http"]["paths"][0]["backend"]["service"]["name"]) in found
    (route,) = manifests.one("HTTPRoute")["spec"]["rules"]
    assert ("Service", route["backendRefs"][0]["name"]) in found
    address = next(entry["value"] for entry in manifests.pod("test").spec["containers"][0]["env"] if entry["name"] == "ADDRESS")
    assert address == f"http://{manifests.one('Service')['metadata']['name']}:11434"


def test_service_account_as_told() -> None:
    named = render({"serviceAccount": {"name": "robot", "annotations": {"a": "b"}}})
    assert named.one("ServiceAccount", "robot")["metadata"]["annotations"] == {"a": "b"}
    assert {spec["serviceAccountName"] for spec in named.pod_specs().values()} == {"robot"}
    theirs = render({"serviceAccount": {"create": False, "name": "theirs"}})
    assert theirs.all("ServiceAccount") == []
    assert {spec["serviceAccountName"] for spec in theirs.pod_specs().values()} == {"theirs"}
    default = render({"serviceAccount": {"create": False}})
    assert {spec["serviceAccountName"] for spec in default.pod_specs().values()} == {"default"}
