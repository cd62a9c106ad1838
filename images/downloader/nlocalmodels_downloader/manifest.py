"""The set manifest: the last file written, read by the server. Its presence says that the whole set is there and verified."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlocalmodels_downloader.volume import write_durably

MANIFEST_VERSION = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a model that has several."""

    file: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """A model: its file, and the shards that follow it, if any."""

    id: str
    file: str
    sha256: str
    size_bytes: int
    shards: tuple[Shard, ...] = ()

    @property
    def files(self) -> tuple[Shard, ...]:
        """All files of the model, the first one first."""
        return (Shard(self.file, self.sha256, self.size_bytes), *self.shards)


class ManifestError(ValueError):
    """A file among the manifests that is none, or damaged."""


def set_id(entries: Sequence[ManifestEntry]) -> str:
    """Returns a short hash of what decides the bytes: each file and its digest, in order."""
    lines = "".join(f"{file.file} {file.sha256}\n" for entry in entries for file in entry.files)
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


def write_manifest(folder: Path, entries: Sequence[ManifestEntry]) -> str:
    """Writes `<folder>/<set id>.json` and returns the set id. An unchanged manifest only becomes the newest."""
    identity = set_id(entries)
    document = {"version": MANIFEST_VERSION, "set": identity, "models": [_entry_document(entry) for entry in entries]}
    data = json.dumps(document, indent=1).encode()
    path = folder / f"{identity}.json"
    if not path.exists() or path.read_bytes() != data:
        write_durably(path, data)
    else:
        # The newest counts as the current one, also after a rollback. On a read-only volume nobody else changes that either.
        with suppress(OSError):
            os.utime(path)
    return identity


def manifest_paths(folder: Path) -> list[Path]:
    """Returns the manifests, the newest first. A folder that is not there has none."""
    stamped: list[tuple[int, str, Path]] = []
    for path in folder.glob("[!.]*.json"):
        with suppress(FileNotFoundError):
            stamped.append((path.stat().st_mtime_ns, path.name, path))
    return [path for _, _, path in sorted(stamped, reverse=True)]


def files_of_sets(folder: Path) -> set[tuple[str, str]]:
    """Returns name and digest of every file that a set on the volume names; a manifest that cannot be read names none."""
    named: set[tuple[str, str]] = set()
    for path in manifest_paths(folder):
        with suppress(ManifestError, OSError):
            named.update((file.file, file.sha256) for entry in read_manifest(path) for file in entry.files)
    return named


def read_manifest(path: Path) -> tuple[ManifestEntry, ...]:
    """Reads a manifest.

    Raises:
        ManifestError: it is not one of this version, or its name is not the hash of what it holds.
        OSError: it cannot be read.
    """
    try:
        document = json.loads(path.read_bytes())
        if document["version"] != MANIFEST_VERSION:
            raise ManifestError(f"{path}: its version {document['version']!r} is not {MANIFEST_VERSION}")
        entries = tuple(_entry(model) for model in document["models"])
    except ManifestError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestError(f"{path}: not a set manifest ({type(error).__name__}: {error})") from None
    if path.stem != set_id(entries):
        raise ManifestError(f"{path}: holds the set {set_id(entries)}, so it was changed by another hand")
    return entries


def _entry_document(entry: ManifestEntry) -> dict[str, object]:
    shards = [_file_document(shard) for shard in entry.shards]
    document = {"id": entry.id, **_file_document(Shard(entry.file, entry.sha256, entry.size_bytes))}
    return {**document, "shards": shards} if shards else document


def _file_document(file: Shard) -> dict[str, object]:
    return {"file": file.file, "sha256": file.sha256, "sizeBytes": file.size_bytes}


def _entry(document: dict[str, Any]) -> ManifestEntry:
    first = _file(document)
    shards = tuple(_file(shard) for shard in document.get("shards", []))
    return ManifestEntry(str(document["id"]), first.file, first.sha256, first.size_bytes, shards)


def _file(document: dict[str, Any]) -> Shard:
    file, sha256, size_bytes = document["file"], document["sha256"], document["sizeBytes"]
    # Files are removed by what is said here, so a name must not lead out of the folder.
    if not isinstance(file, str) or Path(file).name != file or file.startswith("."):
        raise ValueError(f"file {file!r} is not a plain name")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256) or type(size_bytes) is not int:
        raise ValueError(f"{file} has no digest or no size")
    return Shard(file, sha256, size_bytes)
