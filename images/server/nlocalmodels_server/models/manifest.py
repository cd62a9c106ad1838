"""The set manifests that the downloader leaves on the volume: which file was declared under which id."""

from __future__ import annotations

import json
import logging
from pathlib import Path

log = logging.getLogger(__name__)

STATE_FOLDER = ".nlocalmodels"
_VERSION = 1


def read_declared_ids(model_path: Path) -> dict[str, str]:
    """Returns file to id over all manifests, the newest last and so stronger. A folder without manifests is fine."""
    declared: dict[str, str] = {}
    for path in sorted((model_path / STATE_FOLDER / "sets").glob("[!.]*.json"), key=_modified):
        try:
            document = json.loads(path.read_bytes())
            if document["version"] != _VERSION:
                raise ValueError(f"version {document['version']} is not {_VERSION}")
            newer = {str(model["file"]): str(model["id"]) for model in document["models"]}
            # The file that had the id before may still be there, kept with its set.
            declared = {file: model_id for file, model_id in declared.items() if model_id not in newer.values()} | newer
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is not a set manifest (%s); ids come from file names", path, error)
    return declared


def _modified(path: Path) -> int:
    """Returns when a manifest was written; one that the downloader just pruned is the oldest."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
