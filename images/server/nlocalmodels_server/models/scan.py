"""Looks through MODEL_PATH: what to serve, what is broken, what is no model."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nlocalmodels_server.models.gguf_header import NotGgufError, read_general
from nlocalmodels_server.models.manifest import read_declared_ids
from nlocalmodels_server.models.model_ids import NamedModel, name_models, parse_shard

_MAX_DEPTH = 3
_UNFINISHED = (".part", ".partial", ".tmp", ".download", ".crdownload", ".incomplete", ".aria2")
_OTHER_FORMATS = (".bin", ".safetensors", ".pb", ".h5", ".pt", ".pth", ".onnx", ".ggml")


@dataclass(slots=True)
class ScanResult:
    """Paths are relative to MODEL_PATH. `problems` and `ignored` map a file to a sentence that says why."""

    models: list[NamedModel] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def scan(model_path: Path) -> ScanResult:
    """Scans the folder. A folder that is missing or cannot be read is one without models."""
    result = ScanResult()
    servable: list[str] = []
    shards: dict[str, dict[int, str]] = {}
    for file in _files(model_path):
        printable = file.encode("utf-8", "backslashreplace").decode()
        if printable != file:
            result.problems[printable] = "its name is not UTF-8; rename it"
            continue
        reason = _ignored(Path(file).name)
        if reason is not None:
            result.ignored[file] = reason
            continue
        try:
            # Opening a FIFO would wait for ever for a writer.
            if not stat.S_ISREG((model_path / file).stat().st_mode):
                result.problems[file] = "no regular file"
                continue
            general = read_general(model_path / file)
        except NotGgufError as error:
            result.problems[file] = f"not a GGUF file: {error}; only GGUF is served"
            continue
        except OSError as error:
            result.problems[file] = f"cannot be read: {error.strerror}"
            continue
        if general.get("general.type") in ("adapter", "mmproj") or general.get("general.architecture") == "clip":
            result.ignored[file] = "an adapter or projector, no model of its own"
        elif (shard := parse_shard(file)) is not None:
            shards.setdefault(f"{Path(file).parent / shard.prefix}-{shard.count:05d}", {})[shard.index] = file
        else:
            servable.append(file)
    for group in shards.values():
        _take_shards(group, servable, result)
    result.models, result.warnings = name_models(servable, read_declared_ids(model_path))
    return result


def _files(model_path: Path) -> Iterator[str]:
    for folder, subfolders, files in os.walk(model_path):
        depth = len(Path(folder).relative_to(model_path).parts)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and depth + 1 < _MAX_DEPTH)
        for name in sorted(files):
            if not name.startswith("."):
                yield str((Path(folder) / name).relative_to(model_path))


def _ignored(name: str) -> str | None:
    """Returns why a file is no model by its name, None if it may be one."""
    lower = name.lower()
    if lower.endswith(_UNFINISHED):
        return "an unfinished download"
    if lower.endswith(_OTHER_FORMATS):
        return f"{Path(lower).suffix} is not served; convert it to GGUF"
    if not lower.endswith(".gguf"):
        return "not a .gguf file"
    if lower.startswith("mmproj"):
        return "a projector for images, no model of its own"
    return None


def _take_shards(group: dict[int, str], servable: list[str], result: ScanResult) -> None:
    """Serves a split model under its first shard, which llama.cpp loads the others from, or names the missing ones."""
    first = group.get(1) or next(iter(group.values()))
    shard = parse_shard(first)
    assert shard is not None
    missing = [number for number in range(1, shard.count + 1) if number not in group]
    if missing:
        names = ", ".join(f"{shard.prefix}-{number:05d}-of-{shard.count:05d}.gguf" for number in missing[:5])
        result.problems[first] = f"of its {shard.count} shards {len(missing)} are missing: {names}"
    else:
        servable.append(first)
        result.ignored.update({file: f"shard {number} of {first}" for number, file in group.items() if number != 1})
