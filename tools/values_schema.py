"""Writes charts/nlocalmodels/values.schema.json out of values.yaml: its keys, the types of its defaults, its comments.

The schema is closed and says which keys there are and of what type. Whether a value of the right type can work is for
templates/_validate.tpl to say, which knows the remedy and says everything at once.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parent.parent / "charts" / "nlocalmodels"
VALUES = CHART / "values.yaml"
SCHEMA = CHART / "values.schema.json"

Schema = dict[str, Any]

_KEY = re.compile(r"^( *)([A-Za-z][A-Za-z0-9_.-]*):")
_QUANTITY: Schema = {"type": ["string", "integer"]}
_STRINGS: Schema = {"type": "array", "items": {"type": "string"}}
_OBJECTS: Schema = {"type": "array", "items": {"type": "object"}}
_LABELS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
_FILE_PROPERTIES: dict[str, Schema] = {
    "file": {"type": "string", "description": "Name on the volume. Without it, the last part of the source."},
    "source": {
        "type": "string",
        "description": "https://…, http://…, file:///…, s3://BUCKET/KEY, oci://REGISTRY/REPOSITORY@DIGEST or hf://ORG/REPO/FILE@COMMIT",
    },
    "mirrors": {**_STRINGS, "description": "Sources that are asked in order when the first one fails."},
    "sha256": {"type": "string", "description": "64 hex digits"},
    "sizeBytes": {"type": "integer", "description": "The file's exact size."},
}
_SHARD: Schema = {"type": "object", "additionalProperties": False, "properties": _FILE_PROPERTIES}
_MODEL: Schema = {
    "type": ["object", "null"],
    "additionalProperties": False,
    "properties": {
        **_FILE_PROPERTIES,
        "shards": {"type": "array", "items": _SHARD, "description": "The other files of a split model."},
        "context": {"type": "integer", "description": "Tokens of one request, prompt and answer."},
        "memory": {**_QUANTITY, "description": "What the model needs, instead of the estimate."},
    },
}
_AMOUNTS: Schema = {"type": "object", "additionalProperties": {"type": ["string", "number"]}}
_RESOURCES: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"requests": _AMOUNTS, "limits": _AMOUNTS, "claims": _OBJECTS},
}

# What the default alone does not say. Examples are what an editor offers.
_SPECIAL: dict[str, Schema] = {
    "models.set": {"type": "string", "examples": ["starter", "production", "enterprise", "none"]},
    "models.add": {"type": "object", "additionalProperties": _MODEL},
    "models.remove": _STRINGS,
    "models.reload": {"type": "string", "examples": ["rollout", "live"]},
    "storage.strategy": {"type": "string", "examples": ["emptyDir", "pvc", "baked"]},
    "storage.emptyDir.sizeLimit": {**_QUANTITY, "examples": ["auto", "50Gi"]},
    "storage.pvc.size": _QUANTITY,
    "storage.baked.mount": {"type": "string", "examples": ["container", "volume"]},
    "download.minBandwidth": _QUANTITY,
    "download.maxBandwidth": _QUANTITY,
    "download.oci.plainHttp": _STRINGS,
    "download.proxy.noProxy": _STRINGS,
    "download.podLabels": _LABELS,
    "download.podAnnotations": _LABELS,
    "download.extraEnv": _OBJECTS,
    "download.resources": _RESOURCES,
    "server.minReadBandwidth": _QUANTITY,
    "server.graceSeconds": {"type": ["integer", "string"], "examples": ["auto", 600]},
    "server.readyWhen": {"type": "string", "examples": ["default", "all"]},
    "resources": _RESOURCES,
    "service.type": {"type": "string", "examples": ["ClusterIP", "NodePort", "LoadBalancer"]},
    "ingress.hosts": _STRINGS,
    "httpRoute.hostnames": _STRINGS,
    "podDisruptionBudget.maxUnavailable": {"type": ["integer", "string"]},
    "podSecurityContext": {"type": "object"},
    "securityContext": {"type": "object"},
    "podLabels": _LABELS,
    "podAnnotations": _LABELS,
    "commonLabels": _LABELS,
    "nodeSelector": _LABELS,
}


def descriptions(text: str) -> dict[str, str]:
    """Returns the `# --` comment of each key, by the key's whole path."""
    found: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("# --"):
            comment = [stripped[4:].strip()]
        elif stripped.startswith("#") and comment:
            comment.append(stripped[1:].strip())
        elif (match := _KEY.match(line)) is not None:
            indent = len(match[1])
            stack = [(depth, name) for depth, name in stack if depth < indent]
            stack.append((indent, match[2]))
            if comment:
                found[".".join(name for _, name in stack)] = " ".join(comment)
            comment = []
        else:
            comment = []
    return found


def schema_of(value: Any, path: str, texts: dict[str, str]) -> Schema:
    """Returns the schema of a value by its default, its special case and its comment."""
    if path in _SPECIAL:
        schema = dict(_SPECIAL[path])
    elif isinstance(value, bool):
        schema = {"type": "boolean"}
    elif isinstance(value, int):
        schema = {"type": "integer"}
    elif isinstance(value, str):
        schema = {"type": "string"}
    elif isinstance(value, list):
        schema = dict(_STRINGS if value and isinstance(value[0], str) else _OBJECTS)
    elif isinstance(value, dict) and value:
        properties = {key: schema_of(inner, f"{path}.{key}".lstrip("."), texts) for key, inner in value.items()}
        schema = {"type": "object", "additionalProperties": False, "properties": properties}
    elif isinstance(value, dict):
        schema = {"type": "object"}
    else:
        raise TypeError(f"{path}: a default of type {type(value).__name__} has no schema; add it to _SPECIAL")
    if path in texts:
        schema["description"] = texts[path].replace("`", "")
    return schema


def build() -> str:
    """Returns the schema file's text."""
    text = VALUES.read_text()
    schema = schema_of(yaml.safe_load(text), "", descriptions(text))
    # Helm passes these to every subchart.
    schema["properties"]["global"] = {"type": "object"}
    return json.dumps({"$schema": "http://json-schema.org/draft-07/schema#", **schema}, indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the file is not up to date")
    if parser.parse_args().check:
        if not SCHEMA.exists() or SCHEMA.read_text() != build():
            print(f"{SCHEMA.name} is not what values.yaml says; run make docs.", file=sys.stderr)
            return 1
        return 0
    SCHEMA.write_text(build())
    return 0


if __name__ == "__main__":
    sys.exit(main())
