"""Reads server.yaml: which models belong here, and how to serve them. The chart writes it, or a person does.

readyWhen: default        # default | all
contextTokens: 8192       # of models that say nothing else, as the next two
numSlots: 32
numThreads: 4
graceSeconds: 60
maxRequests: 512          # per model, under way and waiting
requestSeconds: 3600      # the most for one of them
hangSeconds: 120          # without a sign of life, until a model's process is ended
serveUndeclared: true     # files that no set declares, such as a person's
defaultModel: llama-2-7b-chat
reload: live              # off | live: whether a running server follows this file and the folder
set: 0a1b2c3d4e5f         # the set that `models` describes; with reload live, what is said here waits for its manifest
models:                   # without this key, what is in the folder is served
  - id: llama-2-7b-chat
    file: llama-2-7b-chat.Q4_K_M.gguf
    contextTokens: 4096   # optional, as all that follow
    numSlots: 8
    numThreads: 2
    numPrefillThreads: 2  # for steps of more than one token, which all are that have several requests
    interTokenMilliseconds: 200  # the most that streams wait for their next token because others' prompts are computed
    kvType: f16           # f16 | q8_0 | f32: how keys and values are kept
    flashAttention: true
    widenWeights: false   # whether Q5_0 may be kept as Q8_0, the same values, where that is faster
    load: boot            # boot | onDemand: whether it loads at the start or with its first request
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from nlocalmodels_server.models.model_ids import parse_shard

# By key: the least and the most. The environment's variables of these names have the same bounds.
BOUNDS = {"contextTokens": (64, 1 << 24), "numSlots": (1, 256), "numThreads": (1, 512), "graceSeconds": (0, 86400)}
# What the chart does not write, but a person may.
OWN_BOUNDS = {
    "maxRequests": (1, 65536),
    "requestSeconds": (1, 86400),
    "hangSeconds": (1, 86400),
    "numPrefillThreads": BOUNDS["numThreads"],
    "interTokenMilliseconds": (10, 60000),
}
_OPTION_KEYS = ("contextTokens", "numSlots", "numThreads")
_LIMIT_KEYS = ("graceSeconds", "maxRequests", "requestSeconds", "hangSeconds")
_KEYS = ("readyWhen", *_OPTION_KEYS, *_LIMIT_KEYS, "serveUndeclared", "defaultModel", "reload", "set", "models")
_MODEL_OPTION_KEYS = (*_OPTION_KEYS, "numPrefillThreads", "interTokenMilliseconds")
_MODEL_KEYS = ("id", "file", *_MODEL_OPTION_KEYS, "kvType", "flashAttention", "widenWeights", "load")
KV_TYPES = ("f16", "q8_0", "f32")
_SET = re.compile(r"[0-9a-f]{12}")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# As deep as the scan looks, and nothing that it does not look at.
_FILE = re.compile(r"(?:[^./\0-\x1f][^/\0-\x1f]*/){0,2}[^./\0-\x1f][^/\0-\x1f]*\.gguf", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class DeclaredModel:
    """A model that belongs here. `file` is relative to MODEL_PATH, for a split model the first shard; None: as all others."""

    id: str
    file: str
    context_tokens: int | None = None
    num_slots: int | None = None
    num_threads: int | None = None
    num_prefill_threads: int | None = None
    inter_token_milliseconds: int | None = None
    kv_type: str | None = None
    flash_attention: bool | None = None
    widen_weights: bool | None = None
    load: Literal["boot", "onDemand"] = "boot"


@dataclass(frozen=True, slots=True)
class Config:
    """What server.yaml says, None where it says nothing. `path` is None if there is none."""

    ready_when: Literal["default", "all"] | None = None
    context_tokens: int | None = None
    num_slots: int | None = None
    num_threads: int | None = None
    grace_seconds: int | None = None
    serve_undeclared: bool = True
    models: tuple[DeclaredModel, ...] | None = None
    path: Path | None = None
    default_model: str | None = None
    reload: Literal["off", "live"] | None = None
    set_id: str | None = None
    max_requests: int | None = None
    request_seconds: int | None = None
    hang_seconds: int | None = None


def load_config(path: Path, must_exist: bool) -> tuple[Config, list[str]]:
    """Returns what the file says, and all its problems as sentences, the first of which names the file."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return Config(), [f"SERVER_CONFIG='{path}': there is no such file; mount it or leave it out."] if must_exist else []
    except OSError as error:
        return Config(), [f"{path}: cannot be read ({error.strerror}); make it readable or take it away."]
    except (yaml.YAMLError, ValueError) as error:
        return Config(), [f"{path}: not YAML: {' '.join(str(error).split())}; correct it."]
    config, problems = parse_config(document)
    if problems:
        problems[0] = f"{path}: {problems[0]}"
    return replace(config, path=path), problems


def parse_config(document: object) -> tuple[Config, list[str]]:
    """Returns what a document says, and all its problems as sentences. An empty one says nothing."""
    problems: list[str] = []
    if document is None:
        return Config(), []
    if not isinstance(document, dict):
        return Config(), [f"must be a mapping; known keys are {', '.join(_KEYS)}."]
    _refuse_unknown(document, _KEYS, "", problems)
    ready_when = document.get("readyWhen")
    if ready_when not in (None, "default", "all"):
        problems.append(f"readyWhen: {_shown(ready_when)} is not known; set it to default or all.")
    reload = document.get("reload")
    if reload is False:
        reload = "off"  # which is what YAML makes of a bare off
    if reload not in (None, "off", "live"):
        problems.append(f"reload: {_shown(reload)} is not known; set it to off or live.")
    serve_undeclared = _boolean(document, "serveUndeclared", "", problems)
    config = Config(
        ready_when=ready_when,
        context_tokens=_integer(document, "contextTokens", "", problems),
        num_slots=_integer(document, "numSlots", "", problems),
        num_threads=_integer(document, "numThreads", "", problems),
        grace_seconds=_integer(document, "graceSeconds", "", problems),
        max_requests=_integer(document, "maxRequests", "", problems),
        request_seconds=_integer(document, "requestSeconds", "", problems),
        hang_seconds=_integer(document, "hangSeconds", "", problems),
        serve_undeclared=serve_undeclared is not False,
        models=_parse_models(document["models"], problems) if "models" in document else None,
        default_model=_optional(document, "defaultModel", _ID, "give the id of a model or leave it out", problems),
        reload=None if reload is None else "live" if reload == "live" else "off",
        set_id=_optional(
            document, "set", _SET, "give the 12 hexadecimal digits of a set, in quotes, or leave it out", problems
        ),
    )
    return config, problems


def _parse_models(entries: object, problems: list[str]) -> tuple[DeclaredModel, ...]:
    if not isinstance(entries, list):
        problems.append(f"models: {_shown(entries)} is not a list; give one, which may be empty ([]), or leave the key out.")
        return ()
    models = [model for index, entry in enumerate(entries) if (model := _parse_model(entry, f"models[{index}]", problems))]
    for name, values in (("id", [model.id for model in models]), ("file", [model.file for model in models])):
        seen: set[str] = set()
        for value in values:
            if value.lower() in seen:
                problems.append(f"models: {name} '{value}' stands twice; every model needs its own.")
            seen.add(value.lower())
    return tuple(models)


def _parse_model(entry: object, where: str, problems: list[str]) -> DeclaredModel | None:
    """Returns the model, None if it has no usable id or file."""
    if not isinstance(entry, dict):
        problems.append(f"{where}: must be a mapping; known keys are {', '.join(_MODEL_KEYS)}.")
        return None
    _refuse_unknown(entry, _MODEL_KEYS, f"{where}.", problems)
    model_id = _text(entry, "id", _ID, where, "give 1 to 128 letters, digits, dots, dashes or underscores", problems)
    file = _text(entry, "file", _FILE, where, "give a file that ends in .gguf, at most two folders below MODEL_PATH", problems)
    shard = parse_shard(file) if file is not None else None
    if shard is not None and shard.index != 1:
        problems.append(f"{where}.file: '{file}' is a later shard; give the first one, -00001-of-{shard.count:05d}.gguf.")
    context_tokens, num_slots, num_threads, num_prefill_threads, inter_token_milliseconds = (
        _integer(entry, key, f"{where}.", problems) for key in _MODEL_OPTION_KEYS
    )
    kv_type = _choice(entry, "kvType", KV_TYPES, where, problems)
    flash_attention = _boolean(entry, "flashAttention", f"{where}.", problems)
    widen_weights = _boolean(entry, "widenWeights", f"{where}.", problems)
    load = _choice(entry, "load", ("boot", "onDemand"), where, problems)
    if kv_type == "q8_0" and flash_attention is False:
        problems.append(f"{where}.kvType: 'q8_0' needs flash attention; leave flashAttention out or set it to true.")
    if model_id is None or file is None:
        return None
    return DeclaredModel(
        model_id,
        file,
        context_tokens,
        num_slots,
        num_threads,
        num_prefill_threads,
        inter_token_milliseconds,
        kv_type,
        flash_attention,
        widen_weights,
        "onDemand" if load == "onDemand" else "boot",
    )


def _refuse_unknown(mapping: dict[Any, Any], known: tuple[str, ...], prefix: str, problems: list[str]) -> None:
    problems.extend(f"{prefix}{key}: unknown key; known are {', '.join(known)}." for key in mapping if key not in known)


def _optional(document: dict[Any, Any], key: str, form: re.Pattern[str], remedy: str, problems: list[str]) -> str | None:
    value = document.get(key)
    if value is None or (isinstance(value, str) and form.fullmatch(value)):
        return value
    problems.append(f"{key}: {_shown(value)} is not usable; {remedy}.")
    return None


def _text(mapping: dict[Any, Any], key: str, form: re.Pattern[str], where: str, remedy: str, problems: list[str]) -> str | None:
    value = mapping.get(key)
    if isinstance(value, str) and form.fullmatch(value):
        return value
    problems.append(f"{where}.{key}: {'is missing' if value is None else f'{_shown(value)} is not usable'}; {remedy}.")
    return None


def _choice(mapping: dict[Any, Any], key: str, known: tuple[str, ...], where: str, problems: list[str]) -> str | None:
    value = mapping.get(key)
    if value is None or value in known:
        return value
    problems.append(f"{where}.{key}: {_shown(value)} is not known; set it to {' or '.join(known)}, or leave it out.")
    return None


def _boolean(mapping: dict[Any, Any], key: str, prefix: str, problems: list[str]) -> bool | None:
    value = mapping.get(key)
    if value is None or isinstance(value, bool):
        return value
    problems.append(f"{prefix}{key}: {_shown(value)} is neither true nor false; set it so or leave it out.")
    return None


def _integer(mapping: dict[Any, Any], key: str, prefix: str, problems: list[str]) -> int | None:
    value = mapping.get(key)
    low, high = (BOUNDS | OWN_BOUNDS)[key]
    if value is None or (type(value) is int and low <= value <= high):
        return value
    problems.append(f"{prefix}{key}: {_shown(value)} is not a whole number from {low} to {high}; set it so or leave it out.")
    return None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
