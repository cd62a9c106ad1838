"""Text that YAML could take for a number, a truth value or nothing stays text, whoever writes it."""

from __future__ import annotations

import re

import pytest

from support.chart import STRATEGIES, Document, Manifests, Values, digest_of_a_set_like, merged, only, own, render, walk

TEXTS = ["123", "1e3", "true", "on", "null"]
PVC = STRATEGIES["pvc"]


def marks(manifests: Manifests) -> list[Document]:
    """Returns all labels, annotations and selectors."""
    found = [document["metadata"].get(kind, {}) for document in manifests.documents for kind in ("labels", "annotations")]
    found += [pod.labels for pod in manifests.pods()] + [pod.annotations for pod in manifests.pods()]
    return [*found, manifests.one("Service")["spec"]["selector"]]


@pytest.mark.parametrize("pattern", ["[0-9]+", "[0-9]+e[0-9]+"])
@pytest.mark.parametrize("strategy", ["emptyDir", "pvc"])
def test_set_whose_id_looks_like_a_number(strategy: str, pattern: str) -> None:
    manifests = render(merged(STRATEGIES[strategy], only(m=own(sha256=digest_of_a_set_like(pattern)))))
    assert re.fullmatch(pattern, manifests.pod("server").annotations["nlocalmodels.io/set"])
    assert all(isinstance(value, str) for mark in marks(manifests) for value in mark.values())


@pytest.mark.parametrize("text", TEXTS)
def test_release_and_namespace_and_name(text: str) -> None:
    manifests = render(merged(PVC, {"nameOverride": text}), release=text, namespace=text)
    assert {document["metadata"]["namespace"] for document in manifests.documents} == {text}
    for mark in marks(manifests):
        assert mark.get("app.kubernetes.io/instance", text) == text
        assert mark.get("app.kubernetes.io/name", text) == text


@pytest.mark.parametrize("text", TEXTS)
def test_names_that_the_values_give(text: str) -> None:
    values: Values = {
        "storage": {"strategy": "pvc", "pvc": {"existingClaim": text, "uploader": {"enabled": True, "name": text}}},
        "download": {
            "hfToken": {"existingSecret": text, "key": text},
            "caBundle": {"configMap": text, "key": text},
            "s3": {"existingSecret": text},
            "oci": {"existingSecret": text, "plainHttp": [text]},
        },
        "serviceAccount": {"name": text},
        "ingress": {"enabled": True, "className": text, "hosts": [text]},
        "priorityClassName": text,
        "runtimeClassName": text,
    }
    manifests = render(values)
    assert manifests.one("Job", text)
    assert manifests.one("Ingress")["spec"]["ingressClassName"] == text
    assert manifests.one("Ingress")["spec"]["rules"][0]["host"] == text
    server, job = manifests.pod("server"), manifests.pod("downloader")
    assert (server.spec["priorityClassName"], server.spec["runtimeClassName"]) == (text, text)
    assert server.spec["serviceAccountName"] == job.spec["serviceAccountName"] == text
    assert job.volume("models") == {"persistentVolumeClaim": {"claimName": text}}
    assert job.volume("ca-bundle") == {"configMap": {"name": text}}
    (token,) = (entry for entry in job.container("model-downloader")["env"] if entry["name"] == "HF_TOKEN")
    assert token["valueFrom"] == {"secretKeyRef": {"name": text, "key": text}}


@pytest.mark.parametrize("text", TEXTS)
def test_words_of_labels_and_variables(text: str) -> None:
    values: Values = {
        "commonLabels": {"a": text},
        "podLabels": {"a": text},
        "podAnnotations": {"a": text},
        "nodeSelector": {"a": text},
        "extraEnv": [{"name": "A", "value": text}],
        "download": {"extraEnv": [{"name": "A", "value": text}], "podLabels": {"a": text}, "podAnnotations": {"a": text}},
        "service": {"annotations": {"a": text}},
    }
    manifests = render(merged(PVC, values))
    assert all(isinstance(value, str) for mark in marks(manifests) for value in mark.values())
    for pod in manifests.pods():
        for container in pod.containers:
            assert all(isinstance(entry.get("value", ""), str) for entry in container.get("env", []))
        assert all(isinstance(value, str) for _, value in walk(pod.spec.get("nodeSelector", {"a": ""})))
