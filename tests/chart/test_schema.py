"""values.yaml: every key is explained, in the schema, and read."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

import values_schema
from support.chart import CHART, walk

TEXT = values_schema.VALUES.read_text()
VALUES: dict[str, Any] = yaml.safe_load(TEXT)
LEAVES = [".".join(path) for path, _ in walk(VALUES)]
EXPLAINED = values_schema.descriptions(TEXT)
# What only judges the values does not read them.
TEMPLATES = "\n".join(
    path.read_text()
    for path in sorted(CHART.glob("templates/**/*"))
    if path.is_file() and not path.name.startswith("_validate")
)


def prefixes(path: str) -> list[str]:
    """Returns the path and those of the maps around it, the nearest first."""
    parts = path.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]


def test_schema_is_what_the_values_say() -> None:
    assert values_schema.build() == values_schema.SCHEMA.read_text(), "run make docs"


@pytest.mark.parametrize("path", LEAVES)
def test_every_key_is_explained(path: str) -> None:
    """By a comment of its own, or of the free-form map that it is a default of."""
    explained = next((prefix for prefix in prefixes(path) if prefix in EXPLAINED), None)
    assert explained is not None, f"{path} has no comment that begins with '# --'"
    schema = json.loads(values_schema.SCHEMA.read_text())
    for name in explained.split("."):
        schema = schema["properties"][name]
    assert schema["description"] == EXPLAINED[explained].replace("`", "")
    if explained != path:
        # Whoever may set any key here finds the explanation above all of them.
        assert schema.get("additionalProperties") is not False or explained.endswith("resources"), path


def test_explanations_are_sentences() -> None:
    assert [path for path, text in EXPLAINED.items() if not re.fullmatch(r"[A-Z`].*[.)}\]]", text)] == []


def reads(path: str) -> bool:
    """Whether a template names the value, or takes a map around it as a whole and then names the last key."""
    last = re.escape(path.rsplit(".", maxsplit=1)[-1])
    names_last = re.search(rf"\.{last}\b|\"{last}\"", TEMPLATES) is not None
    # Not followed by a further key: the map itself goes into a variable, a `with`, a call.
    taken = [prefix for prefix in prefixes(path) if re.search(rf"\.Values\.{re.escape(prefix)}(?![\w.-])", TEMPLATES)]
    return path in taken or (bool(taken) and names_last)


@pytest.mark.parametrize("path", EXPLAINED)
def test_every_value_is_read(path: str) -> None:
    assert reads(path), f"no template reads .Values.{path}"


def test_value_that_no_template_reads_would_be_found() -> None:
    assert not reads("download.nothing")
    assert not reads("nothing")
