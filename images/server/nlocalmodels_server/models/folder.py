"""What is in MODEL_PATH at a moment, to tell what has changed since the moment before. Network filesystems tell nobody."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from nlocalmodels_server.config import DeclaredModel
from nlocalmodels_server.models.manifest import SETS_FOLDER, read_set_sizes
from nlocalmodels_server.models.reload import Snapshot, Stamp, missing_files
from nlocalmodels_server.models.scan import MAX_DEPTH


def take_snapshot(model_path: Path) -> Snapshot:
    """Returns the stamp of each GGUF file, and of each set manifest, by its path relative to MODEL_PATH.

    Raises:
        OSError: a folder cannot be read, which says nothing of what is in it.
    """
    snapshot: Snapshot = {}
    for folder, subfolders, files in os.walk(model_path, onerror=_raise):
        depth = len(Path(folder).relative_to(model_path).parts)
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and depth + 1 < MAX_DEPTH]
        for name in files:
            if name.lower().endswith(".gguf") and not name.startswith("."):
                _stamp(model_path, Path(folder) / name, snapshot)
    for path in (model_path / SETS_FOLDER).glob("[!.]*.json"):
        _stamp(model_path, path, snapshot)
    return snapshot


def find_disagreement(model_path: Path, models: Sequence[DeclaredModel] | None, set_id: str) -> str | None:
    """Returns why the folder does not hold the set that is declared, where nobody will bring it; None if it does."""
    try:
        snapshot = take_snapshot(model_path)
    except OSError as error:
        return f"{error.filename}: {error.strerror}; make it readable, or set MODEL_PATH."
    missing = missing_files(models, set_id, read_set_sizes(model_path, set_id), snapshot)
    if not missing:
        return None
    sets = ", ".join(sorted(Path(file).stem for file in snapshot if file.startswith(f"{SETS_FOLDER}/")))
    return (
        f"{model_path} does not hold the declared set {set_id}: it lacks {', '.join(missing)}, and it has "
        f"{f'the set {sets}' if sets else 'no set'}; use the values that the image was built with, or another image."
    )


def _stamp(model_path: Path, path: Path, snapshot: Snapshot) -> None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return
    snapshot[str(path.relative_to(model_path))] = Stamp(status.st_ino, status.st_size, status.st_mtime_ns)


def _raise(error: OSError) -> None:
    raise error
