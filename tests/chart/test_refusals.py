"""Values that cannot work are refused at once, all of them in one message, each by its path and with the remedy."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from support.chart import CATALOGUE, CHART, STRATEGIES, UNDECLARED, Values, merged, only, own, problems, refusal, render

FORMS = "https://…, http://…, file:///…, s3://BUCKET/KEY, oci://REGISTRY/REPOSITORY@DIGEST or hf://ORG/REPO/FILE@COMMIT"
NO_SOURCE = f"is no source; write it as {FORMS}."
KNOWN = ", ".join(sorted(CATALOGUE["models"]))
PVC: Values = {"storage": {"strategy": "pvc"}}
BAKED = STRATEGIES["baked"]
ALONE: Values = {"models": {"set": "none", "add": {"qwen3-0.6b": {}}}}


def model(**facts: Any) -> Values:
    """Returns values with one own model, m, that has these facts."""
    return only(m=own(**facts))


def split(file: str, *digests: str) -> Values:
    """Returns values with a split model of one file and as many others as there are digests."""
    shards = [
        {"file": f"other-{index}.gguf", "source": "https://host/o", "sha256": digest * 64, "sizeBytes": 1}
        for index, digest in enumerate(digests)
    ]
    return model(file=file, shards=shards)


def download(**settings: Any) -> Values:
    return {"download": settings}


def server(**settings: Any) -> Values:
    return {"server": settings}


def pvc(**settings: Any) -> Values:
    return {"storage": {"strategy": "pvc", "pvc": settings}}


def limits(**amounts: str | int) -> Values:
    return {"resources": {"limits": {name.replace("_", "-"): amount for name, amount in amounts.items()}}}


def out_of_range(path: str, value: int, low: int, high: int) -> str:
    return f"{path}: {value} is out of range; set it from {low} to {high}."


def is_no_digest(path: str) -> str:
    return f"{path}: 'sha256:1' is no digest; write it as sha256: and 64 hex digits."


def is_taken(path: str, name: str) -> str:
    return f"{path}: '{name}' is set by the chart itself; leave it out."


# Values and the one sentence that refuses them.
MODELS = [
    (
        merged(PVC, {"models": {"set": "tiny"}}),
        "models.set: 'tiny' is not known; set it to enterprise, production, starter or none.",
    ),
    (
        {"models": {"remove": ["mistral-7b-instruct"]}},
        "models.remove: 'mistral-7b-instruct' is not in the set 'starter'; leave it out of the list. "
        "The set has gemma-2-2b-it, llama-2-7b-chat.",
    ),
    (
        {"models": {"set": "none"}},
        "models.set: with 'none' and nothing in models.add there is nothing to fetch; choose starter, production or "
        "enterprise, add models, or bring your own files with storage.strategy=pvc.",
    ),
    (
        {"models": {"default": "gpt-4"}},
        "models.default: 'gpt-4' is not among the models; set it to one of gemma-2-2b-it, llama-2-7b-chat, "
        "or add it to models.add.",
    ),
    (
        {"models": {"add": {"other": own(file="LLAMA-2-7b-chat.Q4_K_M.gguf")}}},
        "models.add.other.file: 'LLAMA-2-7b-chat.Q4_K_M.gguf' is the file of 'llama-2-7b-chat' as well; "
        "give one of them another name.",
    ),
    (
        {"models": {"add": {"Llama-2-7B-Chat": own()}}},
        "models.add.Llama-2-7B-Chat: differs from 'llama-2-7b-chat' in capitals only; give one of them another id.",
    ),
    (
        {"models": {"add": {"a/b": own()}}},
        "models.add.a/b: 'a/b' cannot be a model's id; give 1 to 128 letters, digits, dots, dashes or underscores.",
    ),
    (model(source="ftp://host/m.gguf"), f"models.add.m.source: 'ftp://host/m.gguf' {NO_SOURCE}"),
    (model(source="hf://org/m.gguf@main"), f"models.add.m.source: 'hf://org/m.gguf@main' {NO_SOURCE}"),
    (model(source="s3://bucket", file="m.gguf"), f"models.add.m.source: 's3://bucket' {NO_SOURCE}"),
    (model(source="s3://bucket/m.gguf?x=1", file="m.gguf"), f"models.add.m.source: 's3://bucket/m.gguf?x=1' {NO_SOURCE}"),
    (
        model(source="hf://org/repo/m.gguf", file="m.gguf"),
        f"models.add.m.source: 'hf://org/repo/m.gguf' {NO_SOURCE}",
    ),
    (model(mirrors=["https://host/m.gguf", "host/m"]), f"models.add.m.mirrors[1]: 'host/m' {NO_SOURCE}"),
    *(
        (
            model(source=f"https://host/m{suffix}"),
            f"models.add.m.file: 'm{suffix}' cannot be a model's file; give a plain file name that ends in .gguf, "
            "the only format that is served.",
        )
        for suffix in (".bin", ".safetensors", ".pb", ".h5", "")
    ),
    (
        model(file="../m.gguf"),
        "models.add.m.file: '../m.gguf' cannot be a model's file; give a plain file name that ends in .gguf, "
        "the only format that is served.",
    ),
    (
        model(sha256="abc"),
        "models.add.m.sha256: 'abc' is no sha256; give 64 hex digits, as `sha256sum FILE` prints them.",
    ),
    (
        model(sha256=""),
        "models.add.m.sha256: is missing, so nothing says which bytes are right; give the file's sha256, pin an hf:// source "
        "to a commit (@ and 40 hex digits) or an oci:// source to its manifest (@sha256: and 64), "
        "or set models.allowUnverified=true.",
    ),
    (
        model(sizeBytes=0),
        "models.add.m.sizeBytes: is missing, and every size is computed from it; give the file's exact size in bytes.",
    ),
    (
        split("m.gguf", "a"),
        "models.add.m.shards: two of its files have the same sha256; give each its own.",
    ),
    (
        split("m-00002-of-00002.gguf", "b"),
        "models.add.m.file: 'm-00002-of-00002.gguf' is a later part of a split model; give the first one, and the others in "
        "models.add.m.shards.",
    ),
    (
        split("m-00001-of-00012.gguf", "b"),
        "models.add.m.shards: 'm-00001-of-00012.gguf' is the first of 12 parts, so this needs 11 entries and has 1; "
        "list every other part.",
    ),
    (model(memory="much"), "models.add.m.memory: 'much' is no quantity of bytes; write it as 50Gi, 512Mi or a whole number."),
    (model(context=16), out_of_range("models.add.m.context", 16, 64, 16777216)),
    (
        {"models": {"add": {"llama-2-7b-chat": {"context": 8192}}}},
        out_of_range("models.add.llama-2-7b-chat.context", 8192, 64, 4096),
    ),
    (
        {"models": {"add": {"nomic-embed-text-v1.5": {}}}},
        "models.add.nomic-embed-text-v1.5: is an embedding model, and the server generates text only; leave it out.",
    ),
]
STORAGE = [
    (
        {"storage": {"strategy": "nfs"}},
        "storage.strategy: 'nfs' is not known; set it to emptyDir, pvc or baked.",
    ),
    (
        {"storage": {"baked": {"mount": "copy"}}},
        "storage.baked.mount: 'copy' is not known; set it to container or volume.",
    ),
    (
        {"storage": {"emptyDir": {"sizeLimit": "lots"}}},
        "storage.emptyDir.sizeLimit: 'lots' is neither auto nor a quantity of bytes; write it as auto or 50Gi.",
    ),
    (
        {"storage": {"emptyDir": {"sizeLimit": "5Gi"}}},
        "storage.emptyDir.sizeLimit: 5Gi is too small: the models need 6074Mi (5.4 GiB and a tenth); set it to auto.",
    ),
    (pvc(size="all"), "storage.pvc.size: 'all' is no quantity of bytes; write it as 50Gi, 512Mi or a whole number."),
    (
        pvc(size="5Gi"),
        "storage.pvc.size: 5Gi is too small: the models need 6074Mi (5.4 GiB and a tenth); set it to 6074Mi or more.",
    ),
    (
        merged({"replicas": 1}, pvc(accessModes=["ReadWriteOncePod"])),
        "storage.pvc.accessModes: 'ReadWriteOncePod' is not known; set it to ReadWriteMany or ReadWriteOnce.",
    ),
    (
        pvc(accessModes=["ReadWriteOnce"]),
        "storage.pvc.accessModes: without ReadWriteMany a second node cannot mount the volume, but there may be 2 replicas; "
        "use ReadWriteMany, or set replicas=1 and autoscaling.enabled=false.",
    ),
    (
        merged({"replicas": 1, "autoscaling": {"enabled": True, "maxReplicas": 5}}, pvc(accessModes=["ReadWriteOnce"])),
        "storage.pvc.accessModes: without ReadWriteMany a second node cannot mount the volume, but there may be 5 replicas; "
        "use ReadWriteMany, or set replicas=1 and autoscaling.enabled=false.",
    ),
    (pvc(prune={"keepSets": 0}), out_of_range("storage.pvc.prune.keepSets", 0, 1, 100)),
    (pvc(uploader={"timeoutSeconds": 5}), out_of_range("storage.pvc.uploader.timeoutSeconds", 5, 60, 2592000)),
    (
        {"storage": {"pvc": {"uploader": {"enabled": True}}}},
        "storage.pvc.uploader.enabled: there is no volume to upload to with storage.strategy=emptyDir; "
        "set storage.strategy=pvc or leave the uploader out.",
    ),
    (
        merged(BAKED, {"storage": {"baked": {"image": {"repository": ""}}}}),
        "storage.baked.image.repository: is empty; name the image that `make bake` built.",
    ),
    (
        merged(BAKED, {"storage": {"baked": {"image": {"tag": ""}}}}),
        "storage.baked.image.tag: is empty, and so is storage.baked.image.digest; give one of them.",
    ),
]
DOWNLOAD = [
    (
        download(minBandwidth="fast"),
        "download.minBandwidth: 'fast' is no quantity of bytes; write it as 50Gi, 512Mi or a whole number.",
    ),
    (
        download(minBandwidth=0),
        "download.minBandwidth: 0 leaves no deadline to compute; give what the slowest network in use carries, such as 512Ki.",
    ),
    (
        download(maxBandwidth="slow"),
        "download.maxBandwidth: 'slow' is no quantity of bytes; write it as 50Gi, 512Mi or a whole number.",
    ),
    (
        download(maxBandwidth="1Mi"),
        "download.maxBandwidth: 1Mi is less than download.minBandwidth, 2Mi, from which deadlines are computed; "
        "lower that one as well.",
    ),
    (
        download(maxBandwidth=1000, minBandwidth=500),
        "download.maxBandwidth: 1000 is less than 1Ki, the least that the downloader takes; raise it, or leave it empty for "
        "no limit.",
    ),
    (download(attempts=0), out_of_range("download.attempts", 0, 1, 1000)),
    (download(connections=17), out_of_range("download.connections", 17, 1, 16)),
    (download(stallSeconds=0), out_of_range("download.stallSeconds", 0, 1, 3600)),
    (
        download(endpoint="hub.example.com"),
        "download.endpoint: 'hub.example.com' is no address; write it as https://host, "
        "or leave it empty for Hugging Face itself.",
    ),
    (
        download(s3={"endpoint": "minio:9000"}),
        "download.s3.endpoint: 'minio:9000' is no address; write it as https://host, or leave it empty for Amazon's.",
    ),
    (
        download(proxy={"http": "proxy:3128"}),
        "download.proxy.http: 'proxy:3128' is no proxy; write it as http://host:port.",
    ),
    (
        download(proxy={"https": "proxy:3128"}),
        "download.proxy.https: 'proxy:3128' is no proxy; write it as http://host:port.",
    ),
    (
        merged(ALONE, download(offline=True)),
        "download.offline: an emptyDir starts empty, and 'Qwen3-0.6B-Q8_0.gguf' has no file:///… source; "
        "use storage.strategy=pvc or baked.",
    ),
]
SERVER = [
    (server(readyWhen="some"), "server.readyWhen: 'some' is not known; set it to default or all."),
    (server(contextTokens=1), out_of_range("server.contextTokens", 1, 64, 16777216)),
    (server(numSlots=0), out_of_range("server.numSlots", 0, 1, 256)),
    (server(numThreads=-1), out_of_range("server.numThreads", -1, 0, 512)),
    (server(graceSeconds=100000), out_of_range("server.graceSeconds", 100000, 0, 86400)),
    (
        server(graceSeconds="10m"),
        "server.graceSeconds: '10m' is neither auto nor a whole number of seconds; write it as auto or 600.",
    ),
    (server(minTokensPerSecond=0), out_of_range("server.minTokensPerSecond", 0, 1, 1000000)),
    (server(preStopSeconds=601), out_of_range("server.preStopSeconds", 601, 0, 600)),
    (
        server(minReadBandwidth="quick"),
        "server.minReadBandwidth: 'quick' is no quantity of bytes; write it as 50Gi, 512Mi or a whole number.",
    ),
    (
        server(minReadBandwidth="0Mi"),
        "server.minReadBandwidth: 0 leaves no time to compute; give what the slowest volume in use reads, such as 10Mi.",
    ),
    ({"replicas": -1}, out_of_range("replicas", -1, 0, 1000)),
    ({"tests": {"timeoutSeconds": 0}}, out_of_range("tests.timeoutSeconds", 0, 1, 3600)),
    (
        {"autoscaling": {"enabled": True, "maxReplicas": 1}},
        "autoscaling.maxReplicas: 1 with autoscaling.minReplicas 2; the least must be 1 or more and the most no less than it.",
    ),
    (
        {"autoscaling": {"enabled": True, "targetCPUUtilizationPercentage": 0}},
        out_of_range("autoscaling.targetCPUUtilizationPercentage", 0, 1, 1000),
    ),
]
PODS = [
    *(({"image": {name: {"digest": "sha256:1"}}}, is_no_digest(f"image.{name}.digest")) for name in ("server", "downloader")),
    (merged(BAKED, {"storage": {"baked": {"image": {"digest": "sha256:1"}}}}), is_no_digest("storage.baked.image.digest")),
    *(
        (
            {"image": {name: {"pullPolicy": "Sometimes"}}},
            f"image.{name}.pullPolicy: 'Sometimes' is not known; set it to Always, IfNotPresent or Never.",
        )
        for name in ("server", "downloader")
    ),
    *(
        (
            {"image": {name: part}},
            f"image.{name}: needs a repository and a tag or digest; the chart's own are in its values.yaml.",
        )
        for name in ("server", "downloader")
        for part in ({"repository": ""}, {"tag": ""})
    ),
    ({"commonLabels": {"app": "mine"}}, is_taken("commonLabels", "app")),
    ({"commonLabels": {"helm.sh/chart": "mine"}}, is_taken("commonLabels", "helm.sh/chart")),
    ({"podLabels": {"app.kubernetes.io/component": "mine"}}, is_taken("podLabels", "app.kubernetes.io/component")),
    ({"podAnnotations": {"nlocalmodels.io/set": "mine"}}, is_taken("podAnnotations", "nlocalmodels.io/set")),
    (download(podLabels={"app": "mine"}), is_taken("download.podLabels", "app")),
    (download(podAnnotations={"nlocalmodels.io/set": "mine"}), is_taken("download.podAnnotations", "nlocalmodels.io/set")),
]
NETWORK = [
    (
        {"service": {"type": "ExternalName"}},
        "service.type: 'ExternalName' is not known; set it to ClusterIP, NodePort or LoadBalancer.",
    ),
    ({"service": {"port": 70000}}, out_of_range("service.port", 70000, 1, 65535)),
    (
        {"httpRoute": {"enabled": True}},
        "httpRoute.parentRefs: is empty, so no gateway would take the route; name one, such as "
        "[{name: gateway, namespace: gateways}].",
    ),
]
RESOURCES = [
    (
        merged(PVC, UNDECLARED, {"resources": {"requests": {"memory": "auto"}}}),
        "resources.requests.memory: auto has nothing to compute from, since no model is declared; state what the files on "
        "the volume need: their bytes, 1Gi of cache and 400Mi for each, and 256Mi for the server.",
    ),
    *(
        (
            {"resources": {kind: {name: "some"}}},
            f"resources.{kind}.{name}: 'some' is no quantity of bytes; write it as 50Gi, 512Mi or a whole number.",
        )
        for kind in ("limits", "requests")
        for name in ("memory", "ephemeral-storage")
    ),
    (
        merged(model(), limits(memory="1Gi"), {"resources": {"requests": {"memory": "1Gi"}}}),
        "resources.limits.memory: 1Gi is too small for 2704Mi: m 2.4 GiB (weights 1.0 GiB, caches 1.0 GiB, other 400 MiB) + "
        "the server itself 256 MiB; set it to auto, leave models out, lower server.contextTokens, "
        "or state models.add.<id>.memory where you know better.",
    ),
    (
        merged(model(memory="3Gi"), limits(memory="1Gi"), {"resources": {"requests": {"memory": "1Gi"}}}),
        "resources.limits.memory: 1Gi is too small for 3328Mi: m 3Gi as stated + the server itself 256 MiB; set it to auto, "
        "leave models out, lower server.contextTokens, or state models.add.<id>.memory where you know better.",
    ),
    (
        {"resources": {"requests": {"memory": "64Gi"}}},
        "resources.requests.memory: 64Gi is more than resources.limits.memory, auto (9666Mi); lower it or set both to auto.",
    ),
    (
        limits(ephemeral_storage="1Gi"),
        "resources.limits.ephemeral-storage: 1Gi is too small: the models need 6074Mi (5.4 GiB and a tenth); set it to auto.",
    ),
    (
        {"resources": {"requests": {"ephemeral-storage": "64Gi"}}},
        "resources.requests.ephemeral-storage: 65536Mi is more than resources.limits.ephemeral-storage, 21504Mi; "
        "lower it or set both to auto.",
    ),
    ({"gpu": {"enabled": True, "count": 0}}, out_of_range("gpu.count", 0, 1, 64)),
]
TABLE = [*MODELS, *STORAGE, *DOWNLOAD, *SERVER, *PODS, *NETWORK, *RESOURCES]


@pytest.mark.parametrize(("values", "sentence"), TABLE, ids=[sentence.split(" ")[0].rstrip(":") for _, sentence in TABLE])
def test_value_is_refused_by_its_path_with_the_remedy_and_nothing_else_is_said(values: Values, sentence: str) -> None:
    assert problems(values) == [sentence]


@pytest.mark.parametrize(
    "values",
    [
        {"storage": {"emptyDir": {"sizeLimit": 5000000}}},
        pvc(size=5000000),
        limits(memory=5000000),
        merged(model(memory=4000000), {"resources": {"limits": {"memory": 5000000}, "requests": {"memory": 5000000}}}),
        limits(ephemeral_storage=5000000),
        {"resources": {"requests": {"memory": 500000000000}}},
        download(maxBandwidth=1000000, minBandwidth=5000000),
        server(contextTokens=50000000),
    ],
)
def test_numbers_are_shown_as_they_were_written(values: Values) -> None:
    (sentence,) = problems(values)
    assert "e+" not in sentence
    assert re.search("[45]000000", sentence)


def test_unknown_model_is_told_what_it_needs_and_which_are_known() -> None:
    assert problems({"models": {"add": {"gpt-4": {}}}}) == [
        f"models.add.gpt-4: is not in the catalogue, so it needs source, sha256 and sizeBytes; or use one of {KNOWN}."
    ]


def test_image_volume_needs_a_kubernetes_that_has_it() -> None:
    values = STRATEGIES["baked-volume"]
    assert problems(values, kube_version="1.34.4") == [
        "storage.baked.mount: 'volume' needs Kubernetes 1.35, this is v1.34.4; set it to container, "
        "with an image that holds the server too."
    ]
    render(values, kube_version="1.35.0")


def test_everything_is_said_at_once() -> None:
    values = merged(
        {"models": {"default": "gpt-4", "remove": ["gpt-3"]}, "replicas": -1},
        only(a=own(sha256="x", source="x", file="a.bin"), b={}, c=own(mirrors=["y"])),
        {"storage": {"emptyDir": {"sizeLimit": "x"}}, "download": {"attempts": 0}, "server": {"readyWhen": "x"}},
        {"service": {"type": "x"}, "image": {"server": {"digest": "x"}}, "resources": {"limits": {"memory": "x"}}},
    )
    assert [sentence.split(": ")[0] for sentence in problems(values)] == [
        "models.remove",
        "models.default",
        "models.add.a.source",
        "models.add.a.file",
        "models.add.a.sha256",
        "models.add.b",
        "models.add.c.mirrors[0]",
        "storage.emptyDir.sizeLimit",
        "download.attempts",
        "server.readyWhen",
        "replicas",
        "image.server.digest",
        "service.type",
        "resources.limits.memory",
    ]


def test_impossible_kubernetes_is_refused() -> None:
    assert "kubeVersion: >=1.27.0-0" in refusal({}, kube_version="1.26.0")


@pytest.mark.parametrize("helm", ["helm", "helm4"])
def test_unknown_keys_and_wrong_types_are_named_at_once(helm: str) -> None:
    values = {
        "replica": 2,
        "models": {"sets": "starter", "add": {"m": {"sha": "x", "sizeBytes": "big"}}, "allowUnverified": "yes"},
        "storage": {"pvc": {"acessModes": []}, "emptyDir": {"sizeLimit": 1.5}},
        "server": {"numSlots": "many"},
        "ingress": {"hosts": "one.example.com"},
        "resources": {"limit": {}},
    }
    message = refusal(values, helm=helm)
    for expected in (
        "at '': additional properties 'replica' not allowed",
        "at '/models': additional properties 'sets' not allowed",
        "at '/models/add/m': additional properties 'sha' not allowed",
        "at '/models/add/m/sizeBytes': got string, want integer",
        "at '/models/allowUnverified': got string, want boolean",
        "at '/storage/pvc': additional properties 'acessModes' not allowed",
        "at '/storage/emptyDir/sizeLimit': got number",
        "at '/server/numSlots': got string, want integer",
        "at '/ingress/hosts': got string, want array",
        "at '/resources': additional properties 'limit' not allowed",
    ):
        assert expected in message


def maps(schema: Values, path: str = "") -> Iterator[tuple[str, Values]]:
    if "properties" in schema:
        yield path, schema
    for key, inner in schema.get("properties", {}).items():
        yield from maps(inner, f"{path}.{key}")
    for key in ("additionalProperties", "items"):
        if isinstance(schema.get(key), dict):
            yield from maps(schema[key], f"{path}[]")


def test_schema_is_closed_wherever_it_names_keys() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    found = dict(maps(schema))
    assert len(found) > 20
    assert [path for path, inner in found.items() if inner.get("additionalProperties") is not False] == []
