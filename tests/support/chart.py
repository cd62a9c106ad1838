"""Renders the chart with the real Helm, once for the same values, and reads what comes out."""

from __future__ import annotations

import atexit
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import go_binaries
from llama_wheel import ROOT

CHART = ROOT / "charts" / "nlocalmodels"
CATALOGUE: dict[str, Any] = yaml.safe_load((CHART / "catalogue.yaml").read_text())
MIB = 1024**2
GIB = 1024**3
DIGEST = "sha256:" + "d" * 64

Values = dict[str, Any]
Document = dict[str, Any]

# What `helm install` can be told in ci/, by the file's name.
CI_VALUES: dict[str, Values] = {
    path.name.removesuffix("-values.yaml"): yaml.safe_load(path.read_text()) for path in sorted(CHART.glob("ci/*-values.yaml"))
}
# Each way to keep the models, with everything else as it is by default.
# Nothing is declared, so there is nothing that memory could be computed from.
UNDECLARED: Values = {"models": {"set": "none"}, "resources": {"requests": {"memory": "4Gi"}, "limits": {"memory": "4Gi"}}}
STRATEGIES: dict[str, Values] = {
    "emptyDir": {},
    "pvc": {"storage": {"strategy": "pvc", "pvc": {"uploader": {"enabled": True}}}},
    "baked": {"storage": {"strategy": "baked", "baked": {"image": {"repository": "example.com/baked", "tag": "1"}}}},
    "baked-volume": {
        "storage": {
            "strategy": "baked",
            "baked": {"mount": "volume", "image": {"repository": "example.com/models", "tag": "1"}},
        }
    },
}
# Pods that take up a changed set as they run, with what must be stated for that.
_STATED: Values = {
    "models": {"reload": "live"},
    "storage": {"emptyDir": {"sizeLimit": "200Gi"}},
    "resources": {
        "requests": {"memory": "32Gi", "ephemeral-storage": "1Gi"},
        "limits": {"memory": "128Gi", "ephemeral-storage": "201Gi"},
    },
}
LIVE: dict[str, Values] = {
    name: {**_STATED, "storage": {**_STATED["storage"], "strategy": name}} for name in ("emptyDir", "pvc")
}
# The oldest Kubernetes that can do all of it.
KUBE_VERSION = "1.35.0"


@dataclass(frozen=True)
class Pod:
    """A pod, or what makes pods: `owner` is its kind and name."""

    owner: str
    labels: dict[str, str]
    annotations: dict[str, str]
    spec: Document

    @property
    def containers(self) -> list[Document]:
        """All containers, those that start first come first."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    def container(self, name: str) -> Document:
        found = [container for container in self.containers if container["name"] == name]
        assert len(found) == 1, f"{self.owner} has {[container['name'] for container in self.containers]}, not one {name}"
        return found[0]

    def volume(self, name: str) -> Document:
        (found,) = (volume for volume in self.spec["volumes"] if volume["name"] == name)
        return {key: value for key, value in found.items() if key != "name"}


@dataclass(frozen=True)
class Manifests:
    """What Helm rendered. It is shared by all who render the same, so change none of it."""

    text: str
    documents: tuple[Document, ...]

    def all(self, kind: str) -> list[Document]:
        return [document for document in self.documents if document["kind"] == kind]

    def one(self, kind: str, name: str | None = None) -> Document:
        found = [document for document in self.all(kind) if name in (None, document["metadata"]["name"])]
        there = ", ".join(f"{document['kind']}/{document['metadata']['name']}" for document in self.documents)
        assert len(found) == 1, f"{len(found)} of kind {kind} and name {name or '(any)'}; there are {there}"
        return found[0]

    def pods(self) -> list[Pod]:
        """Returns every pod of the chart: the Deployment's, the Jobs', the test."""
        found = []
        for document in self.documents:
            owner = f"{document['kind']}/{document['metadata']['name']}"
            pod = document if document["kind"] == "Pod" else document.get("spec", {}).get("template")
            if pod is not None:
                metadata = pod["metadata"]
                found.append(Pod(owner, metadata["labels"], metadata.get("annotations", {}), pod["spec"]))
        return found

    def pod(self, component: str) -> Pod:
        """Returns the pod of a component: server, downloader, uploader or test."""
        found = [pod for pod in self.pods() if pod.labels["app.kubernetes.io/component"] == component]
        assert len(found) == 1, f"{len(found)} pods of component {component}; there are {[pod.owner for pod in self.pods()]}"
        return found[0]

    def pod_specs(self) -> dict[str, Document]:
        """Returns the spec of every pod by its kind and name."""
        return {pod.owner: pod.spec for pod in self.pods()}

    def config(self, key: str) -> Any:
        """Returns a file of the ConfigMap, parsed."""
        return yaml.safe_load(self.one("ConfigMap")["data"][key])


def render(
    values: Values | None = None,
    *,
    release: str = "r",
    namespace: str = "models",
    kube_version: str | None = None,
    helm: str = "helm",
    chart: Path = CHART,
) -> Manifests:
    """Returns what `helm template` makes of the values. `helm` is helm or helm4."""
    done = _template(json.dumps(values or {}), release, namespace, kube_version, helm, chart)
    assert done.returncode == 0, f"{helm} refuses {values}:\n{done.stderr}"
    return _parse(done.stdout)


def refusal(values: Values, *, release: str = "r", kube_version: str | None = None, helm: str = "helm") -> str:
    """Returns what Helm says of values that it refuses."""
    done = _template(json.dumps(values), release, "models", kube_version, helm, CHART)
    assert done.returncode != 0, f"{helm} takes {values}"
    return done.stderr


def problems(values: Values, *, release: str = "r", kube_version: str | None = None) -> list[str]:
    """Returns the sentences of a refusal by templates/_validate.tpl."""
    message = refusal(values, release=release, kube_version=kube_version)
    lines = re.findall(r"^  - (.+)$", message, re.MULTILINE)
    assert f"{len(lines)} of the values cannot work:" in message, message
    return lines


def included(
    template: str, values: Values | None = None, *, context: str = ".", release: str = "r", kube_version: str | None = None
) -> str:
    """Returns what a named template makes of the values. `notes` is NOTES.txt, which `helm template` throws away.

    `context` is the template's argument, as a template has it.
    """
    call = f'{{{{ include "{template}" {context} | toJson }}}}'
    text = f"apiVersion: v1\nkind: Included\nmetadata: {{name: included}}\ntext: {call}\n"
    chart = _chart_with(text)
    found = render(values, release=release, kube_version=kube_version, chart=chart).one("Included")["text"]
    assert isinstance(found, str)
    return found


def merged(*layers: Values) -> Values:
    """Returns the values of all layers, as Helm merges several files: maps by key, everything else by the last one."""
    result: Values = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else value
    return result


def own(**facts: Any) -> Values:
    """Returns a model that is not in the catalogue, as models.add has it."""
    return {"source": "https://models.example.com/own.Q4_K_M.gguf", "sha256": "a" * 64, "sizeBytes": GIB, **facts}


def only(**models: Values) -> Values:
    """Returns values with these models alone. Underscores of a name stand for dashes."""
    return {"models": {"set": "none", "add": {name.replace("_", "-"): model for name, model in models.items()}}}


def digest_of_a_set_like(pattern: str) -> str:
    """Returns a sha256 of the own model with which the set's id has this form."""
    for number in itertools.count():
        digest = f"{number:064x}"
        identity = hashlib.sha256(f"own.Q4_K_M.gguf {digest}\n".encode()).hexdigest()[:12]
        if re.fullmatch(pattern, identity):
            return digest
    raise AssertionError


def labels_match(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


def bytes_of(quantity: str | int) -> int:
    """Returns the bytes of a quantity that the chart computes or a test gives."""
    match = re.fullmatch(r"(\d+)(|Ki|Mi|Gi|Ti)", str(quantity))
    assert match is not None, f"{quantity!r} is no quantity in whole bytes"
    factors = {"": 1, "Ki": 1024, "Mi": MIB, "Gi": GIB, "Ti": 1024 * GIB}
    return int(match[1]) * factors[match[2]]


def walk(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields each leaf of nested maps with its path. An empty map is a leaf."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from walk(inner, (*path, key))
    else:
        yield path, value


@functools.cache
def _chart_with(template: str) -> Path:
    """Returns a copy of the chart that has one template more."""
    folder = Path(tempfile.mkdtemp(prefix="chart-"))
    atexit.register(shutil.rmtree, folder)
    chart = folder / CHART.name
    shutil.copytree(CHART, chart)
    notes = (CHART / "templates" / "NOTES.txt").read_text()
    (chart / "templates" / "_notes.tpl").write_text('{{- define "notes" }}' + notes + "{{ end }}")
    (chart / "templates" / "included.yaml").write_text(template)
    return chart


@functools.cache
def _template(
    values: str, release: str, namespace: str, kube_version: str | None, helm: str, chart: Path
) -> subprocess.CompletedProcess[str]:
    command = [str(go_binaries.ensure(helm)), "template", release, str(chart), "--namespace", namespace, "--values", "-"]
    if kube_version is not None:
        command += ["--kube-version", kube_version]
    # In a tenth of a second there is no garbage worth collecting: a third less of CPU.
    environment = {**os.environ, "GOGC": "off"}
    return subprocess.run(command, input=values, env=environment, capture_output=True, text=True, timeout=60, check=False)


@functools.cache
def _parse(text: str) -> Manifests:
    documents = [document for document in yaml.load_all(text, _StrictLoader) if document is not None]
    return Manifests(text, tuple(documents))


class _StrictLoader(yaml.CSafeLoader):
    """Reads as Kubernetes does, but refuses a key that stands twice, of which one would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twins = sorted({key for key in keys if keys.count(key) > 1})
        assert not twins, f"keys stand twice: {twins}, line {node.start_mark.line + 1}"
        return super().construct_mapping(node, deep)


# Go's YAML takes 1e3 for a number as well.
_EXPONENT = re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$")
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
