"""Reads downloads.yaml: what belongs on the volume. The chart writes it, or a person does."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nlocalmodels_downloader.errors import ConfigError
from nlocalmodels_downloader.sources import Source, parse_source

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ +-]{0,200}\.gguf", re.IGNORECASE)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Model:
    """One file that belongs on the volume. `sha256` is None when it is to be learned from the hub at a pinned commit."""

    id: str
    file: str
    source: Source
    sha256: str | None = None
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Config:
    model_path: Path
    models: tuple[Model, ...]
    allow_unverified: bool = False


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
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    config, problems = parse_config(document)
    if config is None or problems:
        raise ConfigError(f"{path}: " + " ".join(problems))
    return config


def parse_config(document: object) -> tuple[Config | None, list[str]]:
    """Returns the config, or None and all problems as sentences."""
    problems: list[str] = []
    if not isinstance(document, dict):
        return None, ["must be a mapping with the keys modelPath and models."]
    _refuse_unknown(document, {"modelPath", "models", "allowUnverified"}, "", problems)
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
    for name in ("id", "file"):
        seen: set[str] = set()
        for model in models:
            value = getattr(model, name)
            if value.lower() in seen:
                problems.append(f"models: {name} '{value}' stands twice; every model needs its own.")
            seen.add(value.lower())
    if problems:
        return None, problems
    return Config(Path(str(model_path)), tuple(models), bool(allow_unverified)), []


def _refuse_unknown(mapping: dict[Any, Any], known: set[str], prefix: str, problems: list[str]) -> None:
    names = ", ".join(sorted(known))
    problems.extend(f"{prefix}{key}: unknown key; known are {names}." for key in mapping if key not in known)


def _parse_model(entry: object, where: str, problems: list[str]) -> Model | None:
    if not isinstance(entry, dict):
        problems.append(f"{where}: must be a mapping with id, file, source, sha256 and sizeBytes.")
        return None
    before = len(problems)
    _refuse_unknown(entry, {"id", "file", "source", "sha256", "sizeBytes"}, f"{where}.", problems)

    def check(key: str, valid: Callable[[Any], bool], remedy: str, required: bool = True) -> Any:
        value = entry.get(key)
        if value is None and not required:
            return None
        if value is None or not valid(value):
            found = "is missing" if value is None else f"'{value}' is not usable"
            problems.append(f"{where}.{key}: {found}; {remedy}.")
            return None
        return value

    model_id = check("id", _matches(_ID), "give 1 to 128 letters, digits, dots, dashes or underscores")
    file = check("file", _matches(_FILE), "give a plain file name that ends in .gguf, the only format that is served")
    sha256 = check("sha256", lambda v: isinstance(v, str) and bool(_SHA256.fullmatch(v.lower())), "give 64 hex digits", False)
    size = check(
        "sizeBytes",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and v > 0,
        "give the file's exact size as a whole number of bytes",
        False,
    )
    text = check("source", lambda v: isinstance(v, str), "give https://…, http://… or hf://ORG/REPO/FILE@REVISION")
    if text is not None:
        try:
            source = parse_source(text)
        except ConfigError as error:
            problems.append(f"{where}.source: {error}")
    if len(problems) > before:
        return None
    return Model(model_id, file, source, sha256.lower() if sha256 else None, size)


def _matches(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and bool(pattern.fullmatch(value))
