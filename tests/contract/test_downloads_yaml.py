"""downloads.yaml: the chart writes it, the downloader reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nlocalmodels_downloader.config import Config, Model, parse_config
from nlocalmodels_downloader.errors import ConfigError
from nlocalmodels_downloader.manifest import ManifestEntry, Shard, set_id
from nlocalmodels_downloader.sources import parse_source
from support.chart import CATALOGUE, CI_VALUES, UNDECLARED, Manifests, Values, merged, only, own, problems, render

PVC: Values = {"storage": {"strategy": "pvc"}}
COMMIT = "1" * 40
SPLIT: Values = {
    "file": "big-00001-of-00003.gguf",
    "source": f"hf://org/repo/folder/big-00001-of-00003.gguf@{COMMIT}",
    "mirrors": ["https://a.example.com/1.gguf", "file:///mnt/1.gguf"],
    "sha256": "A" * 64,
    "sizeBytes": 40_000_000_000,
    "shards": [
        {
            "file": f"big-0000{number}-of-00003.gguf",
            "source": f"https://b.example.com:8443/{number}.gguf?signature=a'b\"c%20d",
            "mirrors": [f"http://c.example.com/{number}"],
            "sha256": digit * 64,
            "sizeBytes": 39_999_999_999,
        }
        for number, digit in ((2, "B"), (3, "c"))
    ],
}
# Two of the catalogue's models have the same file name, and a volume has room for one of them.
GENERATING = [
    name for name, facts in CATALOGUE["models"].items() if not (facts.get("embedding") or name.endswith("-bartowski"))
]
FETCHED = {name: values for name, values in CI_VALUES.items() if values.get("storage", {}).get("strategy") != "baked"}
CASES: dict[str, Values] = {
    **{name: {"models": {"set": name}} for name in CATALOGUE["sets"]},
    "none": merged(PVC, UNDECLARED),
    "all known": {"models": {"add": {name: {} for name in GENERATING}}},
    "added": {"models": {"remove": ["gemma-2-2b-it"], "add": {"own": own(), "llama-2-7b-chat": {"context": 1024}}}},
    "split": {"models": {"add": {"big": SPLIT}}},
    "pruned": merged(PVC, {"storage": {"pvc": {"prune": {"keepSets": 9}}}}),
    "not pruned": merged(PVC, {"storage": {"pvc": {"prune": {"enabled": False}}}}),
    "odd names": {
        "models": {
            "set": "none",
            "add": {"1.5": own(file="1.gguf"), "no": own(file="a +b.GGUF"), "x" * 128: own(file="on.gguf")},
        }
    },
    "unverified": {"models": {"allowUnverified": True, "add": {"own": {"source": "https://host/own.gguf", "sizeBytes": 7}}}},
    "pinned": {"models": {"add": {"own": {"source": f"hf://org/repo/own.gguf@{COMMIT}", "sizeBytes": 7}}}},
    **{f"ci {name}": values for name, values in FETCHED.items()},
}
# For these every digest is known when the chart renders.
VERIFIED = [name for name in CASES if name not in ("unverified", "pinned", "ci everything")]
SOURCES = [
    "https://host/m.gguf",
    "http://user:pw@host:8080/m.gguf?x=y#z",
    "http://[fd00::1]/m.gguf",
    "http://[fd00::1]:80/m.gguf",
    "https://host:65535/m.gguf",
    "https://host:65536/m.gguf",
    "https://host:0/m.gguf",
    "https://host:port/m.gguf",
    "https:///m.gguf",
    "ftp://host/m.gguf",
    "host/m.gguf",
    "file:///m.gguf",
    "oci://ghcr.io/org/team-x/m.1__2:v1.0_a",
    f"oci://registry:5000/m@sha256:{'a' * 64}",
    f"oci://registry/m:v1@sha256:{'a' * 64}#a file.gguf",
    "oci://registry/m",
    "oci://registry/M:v1",
    "oci://registry/m:",
    "oci://registry/m@sha256:abc",
    "oci://user:pw@registry/m:v1",
    "oci:///m:v1",
    "oci://registry:0/m:v1",
    "s3://my.bucket-1/a folder/m.gguf",
    "s3://bucket/m",
    "s3://bucket/",
    "s3://bucket",
    "s3://b/m.gguf",
    "s3://bucket//m.gguf",
    "s3://bucket/m.gguf?x=1",
    "s3://bucket/m.gguf/",
    "file://m.gguf",
    f"hf://org/repo/m.gguf@{COMMIT}",
    "hf://org/repo/a/b/m.gguf@main",
    "hf://org/repo/../m.gguf@main",
    "hf://org/repo/..m.gguf@main",
    "hf://org/repo/m.gguf",
    "hf://org/m.gguf@main",
    "hf://org/repo/m.gguf?x@main",
    "hf://or g/repo/m.gguf@main",
]


def parsed(values: Values) -> tuple[Manifests, Config]:
    manifests = render(values)
    config, found = parse_config(manifests.config("downloads.yaml"))
    assert found == []
    assert config is not None
    return manifests, config


def declared(values: Values) -> list[tuple[str, Values]]:
    """Returns the models as values and catalogue have them, without the chart's help."""
    models = values.get("models", {})
    added = models.get("add", {})
    of_set = [name for name in CATALOGUE["sets"].get(models.get("set", "starter"), []) if name not in models.get("remove", [])]
    ids = [*of_set, *sorted(name for name in added if name not in of_set)]
    return [(name, {**CATALOGUE["models"].get(name, {}), **added.get(name, {})}) for name in ids]


def expected_file(model_id: str, facts: Values) -> Model:
    file = facts.get("file") or facts["source"].partition("?")[0].rsplit("/", 1)[-1].partition("@")[0]
    sha256 = facts.get("sha256")
    mirrors = tuple(map(parse_source, facts.get("mirrors", [])))
    shards = tuple(expected_file(model_id, shard) for shard in facts.get("shards", []))
    digest = sha256.lower() if sha256 else None
    return Model(model_id, file, parse_source(facts["source"]), digest, facts["sizeBytes"], mirrors, shards)


@pytest.mark.parametrize("case", CASES)
def test_downloader_reads_what_the_values_say(case: str) -> None:
    values = CASES[case]
    _, config = parsed(values)
    assert config.model_path == Path("/app/models")
    assert list(config.models) == [expected_file(model_id, facts) for model_id, facts in declared(values)]
    assert config.allow_unverified is values.get("models", {}).get("allowUnverified", False)
    prune = values.get("storage", {}).get("pvc", {}).get("prune", {})
    is_pruned = values.get("storage", {}).get("strategy") == "pvc" and prune.get("enabled", True)
    is_live = values.get("models", {}).get("reload") == "live"
    assert config.prune_keep_sets == (prune.get("keepSets", 2) if is_pruned or is_live else None)


@pytest.mark.parametrize("case", VERIFIED)
def test_set_of_the_pods_is_the_one_whose_manifest_the_downloader_writes(case: str) -> None:
    manifests, config = parsed(CASES[case])
    entries = []
    for model in config.models:
        first, *shards = [Shard(file.file, file.sha256 or "", file.size_bytes or 0) for file in model.files]
        entries.append(ManifestEntry(model.id, first.file, first.sha256, first.size_bytes, tuple(shards)))
    # Where a changed set must not change the pods, the Deployment has it.
    annotations = manifests.pod("server").annotations | manifests.one("Deployment")["metadata"].get("annotations", {})
    assert annotations["nlocalmodels.io/set"] == set_id(entries)


@pytest.mark.parametrize("source", SOURCES)
def test_source_is_taken_by_both_or_by_none(source: str) -> None:
    """What the chart takes and the downloader refuses would be found out in the cluster only."""
    try:
        parse_source(source)
        is_source = True
    except ConfigError:
        is_source = False
    values = only(m=own(source=source, file="m.gguf"))
    if is_source:
        assert parsed(values)[1].models[0].source.text == source
    else:
        (sentence,) = problems(values)
        assert sentence.startswith(f"models.add.m.source: '{source}' is no source; ")
