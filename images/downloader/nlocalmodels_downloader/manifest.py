"""The set manifest: the last file written, read by the server. Its presence says that the whole set is there and verified."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nlocalmodels_downloader.volume import write_durably

MANIFEST_VERSION = 1


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    id: str
    file: str
    sha256: str
    size_bytes: int


def set_id(entries: Sequence[ManifestEntry]) -> str:
    """Returns a short hash of what decides the bytes: each file and its digest, in order."""
    lines = "".join(f"{entry.file} {entry.sha256}\n" for entry in entries)
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


def write_manifest(folder: Path, entries: Sequence[ManifestEntry]) -> str:
    """Writes `<folder>/<set id>.json` and returns the set id. An unchanged manifest is left as it is."""
    identity = set_id(entries)
    document = {
        "version": MANIFEST_VERSION,
        "set": identity,
        "models": [
            {"id": entry.id, "file": entry.file, "sha256": entry.sha256, "sizeBytes": entry.size_bytes} for entry in entries
        ],
    }
    data = json.dumps(document, indent=1).encode()
    path = folder / f"{identity}.json"
    if not path.exists() or path.read_bytes() != data:
        write_durably(path, data)
    return identity
