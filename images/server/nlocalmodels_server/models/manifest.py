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
    manifests = sorted((model_path / STATE_FOLDER / "sets").glob("[!.]*.json"), key=lambda path: path.stat().st_mtime_ns)
    for path in manifests:
        try:
            document = json.loads(path.read_bytes())
            if document["version"] != _VERSION:
                raise ValueError(f"version {document['version']} is not {_VERSION}")
            declared.update({str(model["file"]): str(model["id"]) for model in document["models"]})
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is not a set manifest (%s); ids come from file names", path, error)
    return declared
