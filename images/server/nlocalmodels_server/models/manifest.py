"""The set manifests that the downloader leaves on the volume: which file was declared under which id."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

STATE_FOLDER = ".nlocalmodels"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class _Entry:
    id: str
    file: str
    shards: tuple[str, ...]


def read_declared_ids(model_path: Path) -> dict[str, str]:
    """Returns file to id over all manifests, the newest last and so stronger. A folder without manifests is fine."""
    declared: dict[str, str] = {}
    for entries in _read_sets(model_path):
        newer = {entry.file: entry.id for entry in entries}
        # The file that had the id before may still be there, kept with its set.
        declared = {file: model_id for file, model_id in declared.items() if model_id not in newer.values()} | newer
    return declared


def read_set_files(model_path: Path) -> set[str]:
    """Returns every file that any manifest names, shards too."""
    return {file for entries in _read_sets(model_path) for entry in entries for file in (entry.file, *entry.shards)}


def _read_sets(model_path: Path) -> Iterator[list[_Entry]]:
    """Yields what each manifest holds, the newest last."""
    for path in sorted((model_path / STATE_FOLDER / "sets").glob("[!.]*.json"), key=_modified):
        try:
            document = json.loads(path.read_bytes())
            if document["version"] != _VERSION:
                raise ValueError(f"version {document['version']} is not {_VERSION}")
            entries = [
                _Entry(str(model["id"]), str(model["file"]), tuple(str(shard["file"]) for shard in model.get("shards", ())))
                for model in document["models"]
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s is not a set manifest (%s); what it names counts as undeclared", path, error)
        else:
            yield entries


def _modified(path: Path) -> int:
    """Returns when a manifest was written; one that the downloader just pruned is the oldest."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
