"""From file names to the names that clients use. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

# Quantization suffixes as they stand in file names: Q4_K_M, q8_0, IQ2_XXS, TQ1_0, F16, BF16, MXFP4, UD-Q4_K_XL.
_QUANTIZATION = re.compile(
    r"[.\-_](?:UD-)?(?:I?Q\d+(?:_[A-Z0-9]+)*|TQ\d_\d|MXFP4(?:_MOE)?|NVFP4|BF16|FP?16|FP?32)$", re.IGNORECASE
)
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")


@dataclass(frozen=True, slots=True)
class NamedModel:
    id: str
    file: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Shard:
    """A file that is one part of a split model: number `index` of `count`, from 1."""

    prefix: str
    index: int
    count: int


def stem(file: str) -> str:
    """Returns the file's name without folder and .gguf."""
    return re.sub(r"\.gguf$", "", file.rsplit("/", 1)[-1], flags=re.IGNORECASE)


def parse_shard(file: str) -> Shard | None:
    name = stem(file)
    match = _SHARD.search(name)
    return Shard(name[: match.start()], int(match[1]), int(match[2])) if match else None


def files_of(file: str) -> tuple[str, ...]:
    """Returns all files of the model that has this one as its only file or as its first shard."""
    shard = parse_shard(file)
    if shard is None:
        return (file,)
    end = len(file) - len(stem(file)[len(shard.prefix) :]) - len(".gguf")
    numbers = range(1, shard.count + 1)
    return tuple(f"{file[:end]}-{number:05d}-of-{shard.count:05d}{file[-len('.gguf') :]}" for number in numbers)


def short_id(file: str) -> str:
    """Returns the name without shard number and quantization: `llama-2-7b-chat.Q4_K_M.gguf` is `llama-2-7b-chat`."""
    name = _SHARD.sub("", stem(file))
    return _QUANTIZATION.sub("", name) or name


def name_models(
    files: Iterable[str], declared: Mapping[str, str], reserved: Collection[str] = ()
) -> tuple[list[NamedModel], list[str]]:
    """Names every file, and returns warnings about names that had to change.

    A declared id (file to id) holds. Otherwise the short id, unless several files would have it: then each keeps its
    quantization, and the short id is an alias of the first by file name.

    Args:
        reserved: ids that belong to files which are not here.
    """
    warnings = []
    by_short_id: dict[str, list[str]] = {}
    named: list[NamedModel] = []
    taken = set(reserved)
    undeclared = []
    for file in sorted(files):
        if file in declared and declared[file] not in taken:
            taken.add(declared[file])
            named.append(NamedModel(declared[file], file))
        else:
            undeclared.append(file)
    for file in undeclared:
        by_short_id.setdefault(short_id(file), []).append(file)
    for short, group in by_short_id.items():
        if len(group) == 1 and short not in taken:
            taken.add(short)
            named.append(NamedModel(short, group[0]))
            continue
        # A file that has no quantization in its name is the one that the short name means.
        group.sort(key=lambda file: _SHARD.sub("", stem(file)) != short)
        alias = () if short in taken else (short,)
        meaning = f"'{short}' means {group[0]}" if alias else f"'{short}' is the id of another file"
        warnings.append(f"{', '.join(group)} would all be '{short}': each keeps its whole name as its id, and {meaning}")
        for file in group:
            whole = _SHARD.sub("", stem(file))
            # Files of one name in several folders have only their paths to tell them apart.
            model_id = file if whole in taken else whole
            taken.add(model_id)
            named.append(NamedModel(model_id, file, alias if model_id != short else ()))
            alias = ()
    return sorted(named, key=lambda model: model.file), warnings
