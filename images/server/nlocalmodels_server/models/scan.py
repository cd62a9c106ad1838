"""Looks through MODEL_PATH: what to serve, what is broken, what is no model."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nlocalmodels_server.config import DeclaredModel
from nlocalmodels_server.models.gguf_header import NotGgufError, read_general
from nlocalmodels_server.models.manifest import read_declared_ids, read_set_files, was_fetched
from nlocalmodels_server.models.model_ids import NamedModel, name_models, parse_shard

MAX_DEPTH = 3
_UNFINISHED = (".part", ".partial", ".tmp", ".download", ".crdownload", ".incomplete", ".aria2")
_OTHER_FORMATS = (".bin", ".safetensors", ".pb", ".h5", ".pt", ".pth", ".onnx", ".ggml")


@dataclass(slots=True)
class ScanResult:
    """Paths are relative to MODEL_PATH. `problems` and `ignored` map a file to a sentence that says why."""

    models: list[NamedModel] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def scan(
    model_path: Path,
    declared: Sequence[DeclaredModel] | None = None,
    serve_undeclared: bool = True,
    known: Collection[str] = (),
    held: Mapping[str, str] | None = None,
) -> ScanResult:
    """Scans the folder. A folder that is missing or cannot be read is one without models.

    Args:
        declared: what belongs here. What else a set on the volume names is then left alone; without it, whatever is there is
            served, under the ids that the sets name.
        serve_undeclared: whether a file is served that is not declared and that no set names.
        known: files that are being served, so that they are models without another look, even if they are gone.
        held: files that must wait, and why.
    """
    result = ScanResult()
    unwanted = _judge_by_declaration(model_path, declared, serve_undeclared)
    servable: list[str] = []
    shards: dict[str, dict[int, str]] = {}
    for file in sorted({*_files(model_path), *known}):
        printable = file.encode("utf-8", "backslashreplace").decode()
        if printable != file:
            result.problems[printable] = "its name is not UTF-8; rename it"
            continue
        reason = _ignored(Path(file).name) or unwanted(file)
        if reason is None and file not in known:
            reason = (held or {}).get(file)
        if reason is not None:
            result.ignored[file] = reason
            continue
        if file in known:
            _take(file, servable, shards)
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
        else:
            _take(file, servable, shards)
    for group in shards.values():
        _take_shards(group, servable, result)
    ids = read_declared_ids(model_path) if declared is None else {model.file: model.id for model in declared}
    # An id that is declared is never silently another file's.
    reserved = {model.id for model in declared or () if model.file not in servable}
    _report_missing(declared or (), servable, result)
    result.models, result.warnings = name_models(servable, ids, reserved)
    return result


def _judge_by_declaration(
    model_path: Path, declared: Sequence[DeclaredModel] | None, serve_undeclared: bool
) -> Callable[[str], str | None]:
    """Returns what says of a file why it is not wanted here, None if it is."""
    if declared is None:
        return lambda _: None
    wanted = {_whole(model.file) for model in declared}
    of_sets = {_whole(file) for file in read_set_files(model_path)}

    def judge(file: str) -> str | None:
        if _whole(file) in wanted:
            return None
        if _whole(file) in of_sets:
            return "belongs to another set"
        if was_fetched(model_path, file):
            return "was fetched for a set that is not complete"
        return None if serve_undeclared else "not declared, and serveUndeclared is false"

    return judge


def _report_missing(declared: Sequence[DeclaredModel], servable: Sequence[str], result: ScanResult) -> None:
    """Names each declared file that is not there, or is something that is not served."""
    for model in declared:
        if model.file not in servable and model.file not in result.problems:
            reason = result.ignored.pop(model.file, "it is not in MODEL_PATH")
            result.problems[model.file] = f"declared as '{model.id}', but {reason}"


def _files(model_path: Path) -> Iterator[str]:
    for folder, subfolders, files in os.walk(model_path):
        depth = len(Path(folder).relative_to(model_path).parts)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and depth + 1 < MAX_DEPTH)
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


def _take(file: str, servable: list[str], shards: dict[str, dict[int, str]]) -> None:
    shard = parse_shard(file)
    if shard is None:
        servable.append(file)
    else:
        shards.setdefault(_whole(file), {})[shard.index] = file


def _whole(file: str) -> str:
    """Returns what the shards of one model have in common; for any other file, the file."""
    shard = parse_shard(file)
    return file if shard is None else f"{Path(file).parent / shard.prefix} in {shard.count}"


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
