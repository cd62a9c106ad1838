"""Reads downloads.yaml: what belongs on the volume. The chart writes it, or a person does."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from nlocalmodels_downloader.errors import ConfigError
from nlocalmodels_downloader.sources import Source, parse_source, redact

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ +-]{0,200}\.gguf", re.IGNORECASE)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE_KEYS = ("file", "source", "mirrors", "sha256", "sizeBytes")


@dataclass(frozen=True, slots=True)
class Model:
    """One file that belongs on the volume, and for a split model its other shards.

    `sha256` is None when it is to be learned from the hub at a pinned commit. `mirrors` are asked in order when `source` fails.
    """

    id: str
    file: str
    source: Source
    sha256: str | None = None
    size_bytes: int | None = None
    mirrors: tuple[Source, ...] = ()
    shards: tuple[Model, ...] = ()

    @property
    def sources(self) -> tuple[Source, ...]:
        return (self.source, *self.mirrors)

    @property
    def files(self) -> tuple[Model, ...]:
        """All files of the model, each as a model of its own, the first shard first."""
        return (self, *self.shards)


@dataclass(frozen=True, slots=True)
class Config:
    """`prune_keep_sets` is how many sets stay on the volume; None keeps everything."""

    model_path: Path
    models: tuple[Model, ...]
    allow_unverified: bool = False
    prune_keep_sets: int | None = None


def load_config(path: Path) -> Config:
    """Reads and checks the file.

    Raises:
        ConfigError: with every problem found, each naming its key.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give its path with --config.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not YAML: {_yaml_problem(error)}; correct it.") from None
    config, problems = parse_config(document)
    if config is None or problems:
        raise ConfigError(f"{path}: " + " ".join(problems))
    return config


def parse_config(document: object) -> tuple[Config | None, list[str]]:
    """Returns the config, or None and all problems as sentences."""
    problems: list[str] = []
    if not isinstance(document, dict):
        return None, ["must be a mapping with the keys modelPath and models."]
    _refuse_unknown(document, {"modelPath", "models", "allowUnverified", "prune"}, "", problems)
    model_path = document.get("modelPath")
    if not isinstance(model_path, str) or not model_path:
        problems.append("modelPath: must be the folder for the models, such as /app/models.")
    allow_unverified = document.get("allowUnverified", False)
    if not isinstance(allow_unverified, bool):
        problems.append("allowUnverified: must be true or false.")
    entries = document.get("models")
    if not isinstance(entries, list):
        problems.append("models: must be a list, which may be empty.")
        entries = []
    models = [model for index, entry in enumerate(entries) if (model := _parse_model(entry, f"models[{index}]", problems))]
    _refuse_twins("id", [model.id for model in models], problems)
    _refuse_twins("file", [file.file for model in models for file in model.files], problems)
    keep_sets = _parse_prune(document.get("prune"), problems)
    if problems:
        return None, problems
    return Config(Path(str(model_path)), tuple(models), bool(allow_unverified), keep_sets), []


def _refuse_unknown(mapping: dict[Any, Any], known: set[str], prefix: str, problems: list[str]) -> None:
    names = ", ".join(sorted(known))
    problems.extend(f"{prefix}{key}: unknown key; known are {names}." for key in mapping if key not in known)


def _refuse_twins(name: str, values: list[str], problems: list[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value.lower() in seen:
            problems.append(f"models: {name} '{value}' stands twice; every model needs its own.")
        seen.add(value.lower())


def _parse_prune(value: object, problems: list[str]) -> int | None:
    if value is None:
        return None
    if isinstance(value, dict) and set(value) == {"keepSets"}:
        keep_sets = value["keepSets"]
        if isinstance(keep_sets, int) and not isinstance(keep_sets, bool) and keep_sets >= 1:
            return keep_sets
    problems.append("prune: must be a mapping with keepSets, how many sets stay on the volume, at least 1.")
    return None


def _parse_model(entry: object, where: str, problems: list[str]) -> Model | None:
    if not isinstance(entry, dict):
        problems.append(f"{where}: must be a mapping with id, file, source, sha256 and sizeBytes.")
        return None
    before = len(problems)
    _refuse_unknown(entry, {"id", *_FILE_KEYS, "shards"}, f"{where}.", problems)

    model_id = entry.get("id")
    if not isinstance(model_id, str) or not _ID.fullmatch(model_id):
        found = "is missing" if model_id is None else f"{_shown(model_id)} is not usable"
        problems.append(f"{where}.id: {found}; give 1 to 128 letters, digits, dots, dashes or underscores.")
    shards = []
    entries = entry.get("shards") or []
    if not isinstance(entries, list):
        problems.append(f"{where}.shards: must be a list of the files after the first.")
        entries = []
    for index, shard in enumerate(entries):
        name = f"{where}.shards[{index}]"
        if not isinstance(shard, dict):
            problems.append(f"{name}: must be a mapping with {', '.join(_FILE_KEYS)}.")
            continue
        _refuse_unknown(shard, set(_FILE_KEYS), f"{name}.", problems)
        shards.append(_parse_file(shard, str(model_id), name, problems))
    first = _parse_file(entry, str(model_id), where, problems)
    if len(problems) > before or first is None:
        return None
    _refuse_twins("sha256", [file.sha256 for file in (first, *shards) if file is not None and file.sha256], problems)
    if len(problems) > before:
        return None
    return replace(first, shards=tuple(shard for shard in shards if shard is not None))


def _parse_file(entry: dict[Any, Any], model_id: str, where: str, problems: list[str]) -> Model | None:
    """Parses what a model and a shard have in common."""
    before = len(problems)

    def check(key: str, valid: Callable[[Any], bool], remedy: str, required: bool = True) -> Any:
        value = entry.get(key)
        if value is None and not required:
            return None
        if value is None or not valid(value):
            found = "is missing" if value is None else f"{_shown(value)} is not usable"
            problems.append(f"{where}.{key}: {found}; {remedy}.")
            return None
        return value

    file = check("file", _matches(_FILE), "give a plain file name that ends in .gguf, the only format that is served")
    sha256 = check("sha256", lambda v: isinstance(v, str) and bool(_SHA256.fullmatch(v.lower())), "give 64 hex digits", False)
    size = check(
        "sizeBytes",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and v > 0,
        "give the file's exact size as a whole number of bytes",
        False,
    )
    forms = (
        "give https://…, http://…, file:///…, s3://BUCKET/KEY, oci://REGISTRY/REPOSITORY@DIGEST or hf://ORG/REPO/FILE@REVISION"
    )
    text = check("source", lambda v: isinstance(v, str), forms)
    mirrors = check("mirrors", lambda v: isinstance(v, list) and all(isinstance(m, str) for m in v), "give a list", False)
    sources = []
    for key, value in [("source", text), *((f"mirrors[{index}]", mirror) for index, mirror in enumerate(mirrors or []))]:
        try:
            sources.append(parse_source(value or ""))
        except ConfigError as error:
            if value is not None:
                problems.append(f"{where}.{key}: {error}")
    if len(problems) > before:
        return None
    return Model(model_id, file, sources[0], sha256.lower() if sha256 else None, size, tuple(sources[1:]))


def _matches(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and bool(pattern.fullmatch(value))


def _yaml_problem(error: Exception) -> str:
    """Names what is wrong and where, without the lines around it, which can hold signed addresses."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem or error.context} at line {mark.line + 1}, column {mark.column + 1}"
    return type(error).__name__


def _shown(value: object) -> str:
    """Returns a value as a message may show it: addresses without secrets, and nothing of what holds other values."""
    if isinstance(value, str | int | float):
        text = str(value)
        return f"'{redact(text) if ':' in text else text}'"
    return f"a {type(value).__name__}"
