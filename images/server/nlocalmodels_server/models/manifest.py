"""What the downloader leaves on the volume: set manifests, which file was declared under which id, and records of files."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

STATE_FOLDER = ".nlocalmodels"
SETS_FOLDER = f"{STATE_FOLDER}/sets"
# In the record of a file: the source of one that was a person's and not fetched.
_FOUND_ON_VOLUME = "found on the volume"
_VERSION = 1
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)


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


def read_set_sizes(model_path: Path, set_id: str) -> dict[str, int] | None:
    """Returns the size in bytes of each file of a set, None as long as it is not complete: its manifest is written last."""
    try:
        return {str(file["file"]): int(file["sizeBytes"]) for file in _read_set(model_path, set_id)}
    except _UNREADABLE:
        return None


def was_fetched(model_path: Path, file: str) -> bool:
    """Whether the downloader fetched a file, as for a set that is not complete yet: no person put it there."""
    try:
        return bool(_read_record(model_path, file)["source"] != _FOUND_ON_VOLUME)
    except _UNREADABLE:
        return False


def was_fetched_for_another(model_path: Path, set_id: str, file: str) -> bool:
    """Whether the downloader has put other bytes in place of a file of a set, which is for a set that comes."""
    try:
        digests = {file["file"]: file["sha256"] for file in _read_set(model_path, set_id)}
        return file in digests and bool(_read_record(model_path, file)["sha256"] != digests[file])
    except _UNREADABLE:
        return False


def _read_set(model_path: Path, set_id: str) -> list[dict[str, Any]]:
    document = json.loads((model_path / SETS_FOLDER / f"{set_id}.json").read_bytes())
    if document["version"] != _VERSION:
        raise ValueError(f"version {document['version']} is not {_VERSION}")
    return [file for model in document["models"] for file in (model, *model.get("shards", ()))]


def _read_record(model_path: Path, file: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((model_path / STATE_FOLDER / "verified" / f"{file}.json").read_bytes())
    return record


def _read_sets(model_path: Path) -> Iterator[list[_Entry]]:
    """Yields what each manifest holds, the newest last."""
    for path in sorted((model_path / SETS_FOLDER).glob("[!.]*.json"), key=_modified):
        try:
            document = json.loads(path.read_bytes())
            if document["version"] != _VERSION:
                raise ValueError(f"version {document['version']} is not {_VERSION}")
            entries = [
                _Entry(str(model["id"]), str(model["file"]), tuple(str(shard["file"]) for shard in model.get("shards", ())))
                for model in document["models"]
            ]
        except _UNREADABLE as error:
            log.warning("%s is not a set manifest (%s); what it names counts as undeclared", path, error)
        else:
            yield entries


def _modified(path: Path) -> int:
    """Returns when a manifest was written; one that the downloader just pruned is the oldest."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
