"""What has to happen so that what is served becomes what is wanted. Pure: no clock, no process, no I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from nlocalmodels_server.config import DeclaredModel
from nlocalmodels_server.memory import Memory
from nlocalmodels_server.models.manifest import SETS_FOLDER
from nlocalmodels_server.models.model_ids import NamedModel, files_of
from nlocalmodels_server.workers.protocol import LoadOptions

_GIB_BYTES = 1024**3
# What a model takes beside its file: caches, compute buffers and the process, with room to spare.
_BESIDE_FILE_BYTES = 3 * _GIB_BYTES // 2
_SETTLING = "it is still being written"
_PENDING = "it belongs to a set that is not complete yet"


class Stamp(NamedTuple):
    """What tells one content of a file from another without reading it."""

    inode: int
    size_bytes: int
    modified_ns: int


# By path relative to MODEL_PATH.
Snapshot = dict[str, Stamp]


@dataclass(frozen=True, slots=True)
class Target:
    """What a model's process is, or should be: two that are equal need no new process."""

    id: str
    file: str
    options: LoadOptions
    stamps: tuple[tuple[str, Stamp | None], ...]

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(file for file, _ in self.stamps)

    @property
    def size_bytes(self) -> int:
        return sum(stamp.size_bytes for _, stamp in self.stamps if stamp is not None)

    def difference(self, other: Target) -> str:
        """Returns in words what differs in another target of the same id."""
        if self.file != other.file:
            return f"{other.file} instead of {self.file}"
        if self.stamps != other.stamps:
            return f"{other.file} has other content"
        return f"{other.file} with other options"


@dataclass(frozen=True, slots=True)
class Plan:
    """Ids. `changed` says what differs; `renamed` maps a new id to the old one of the same process."""

    kept: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[tuple[str, str], ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        groups = {
            "added": self.added,
            "removed": self.removed,
            "changed": tuple(model_id for model_id, _ in self.changed),
            "renamed": tuple(f"{old} to {new}" for new, old in self.renamed),
            "kept": self.kept,
        }
        return "; ".join(f"{word} {', '.join(ids)}" for word, ids in groups.items() if ids) or "there is no model"


def make_plan(current: Mapping[str, Target], wanted: Mapping[str, Target]) -> Plan:
    """Returns what leads from one to the other. A model that only goes by another id keeps its process."""
    gone = [model_id for model_id in current if model_id not in wanted]
    renamed: dict[str, str] = {}
    for model_id, target in wanted.items():
        if model_id not in current:
            alike = (old for old in gone if _is_same_but_id(current[old], target) and old not in renamed.values())
            if (old := next(alike, None)) is not None:
                renamed[model_id] = old
    both = [model_id for model_id in wanted if model_id in current]
    return Plan(
        kept=tuple(model_id for model_id in both if wanted[model_id] == current[model_id]),
        added=tuple(model_id for model_id in wanted if model_id not in current and model_id not in renamed),
        removed=tuple(model_id for model_id in gone if model_id not in renamed.values()),
        changed=tuple(
            (model_id, current[model_id].difference(wanted[model_id]))
            for model_id in both
            if wanted[model_id] != current[model_id]
        ),
        renamed=tuple(renamed.items()),
    )


def _is_same_but_id(one: Target, other: Target) -> bool:
    return (one.file, one.stamps, one.options) == (other.file, other.stamps, other.options)


def make_targets(
    models: Iterable[tuple[NamedModel, LoadOptions]],
    snapshot: Snapshot,
    current: Iterable[Target] = (),
    known: Collection[str] = (),
) -> dict[str, Target]:
    """Returns the targets by id. Files that are `known` count as what their process was loaded from."""
    loaded = {target.file: target.stamps for target in current if set(target.files) <= set(known)}
    targets = {}
    for model, options in models:
        stamps = tuple((file, snapshot.get(file)) for file in files_of(model.file))
        targets[model.id] = Target(model.id, model.file, options, loaded.get(model.file, stamps))
    return targets


def judge_files(
    current: Iterable[Target],
    previous: Snapshot,
    snapshot: Snapshot,
    declared: Collection[str] = (),
    pending: Collection[str] = (),
) -> tuple[set[str], dict[str, str]]:
    """Returns the files that stay as they are loaded, and those that must wait, with the reason.

    Args:
        current: what is served, or loads.
        previous: the snapshot before; what differs from it is just being written, moved or removed.
        declared: files that the settings in force name. Such a one stays loaded even if it vanishes: a prune may come before
            the news that it is needed no longer.
        pending: files of a set that is not complete, which nobody touches before it is.
    """
    unsettled = {file for file in {*previous, *snapshot} if previous.get(file) != snapshot.get(file)}
    known: set[str] = set()
    for target in current:
        is_unchanged = all(snapshot.get(file) == stamp for file, stamp in target.stamps)
        is_missed = target.file in declared and any(file not in snapshot for file in target.files)
        if is_unchanged or is_missed or not unsettled.isdisjoint(target.files) or not set(pending).isdisjoint(target.files):
            known.update(target.files)
    return known, dict.fromkeys(pending, _PENDING) | dict.fromkeys(unsettled, _SETTLING)


def missing_files(
    models: Sequence[DeclaredModel] | None, set_id: str | None, set_sizes: Mapping[str, int] | None, settled: Snapshot
) -> list[str]:
    """Returns what must still come before all that is declared can be served.

    Args:
        set_sizes: the size of each file by the set's manifest, None if that is not there.
        settled: the files that no longer change.
    """
    missing = []
    if set_id is not None and set_sizes is None:
        missing.append(f"{SETS_FOLDER}/{set_id}.json")
    sizes = (set_sizes or {}) if set_id is not None else {}
    for file in dict.fromkeys((*(file for model in models or () for file in files_of(model.file)), *sizes)):
        if file not in settled:
            missing.append(file)
        elif file in sizes and settled[file].size_bytes != sizes[file]:
            missing.append(f"{file}: it has {settled[file].size_bytes} bytes, by the set {sizes[file]}")
    return missing


def find_shortage(target: Target, memory: Memory | None) -> str | None:
    """Returns why a model does not fit beside what is loaded, with the arithmetic; None if it does or there is no limit."""
    needed_bytes = target.size_bytes * 11 // 10 + _BESIDE_FILE_BYTES
    if memory is None or needed_bytes <= memory.free_bytes:
        return None
    return (
        f"it needs {_gib(needed_bytes)} ({_gib(target.size_bytes)} x 1.1 + {_gib(_BESIDE_FILE_BYTES)}), and "
        f"{_gib(memory.free_bytes)} are free ({_gib(memory.limit_bytes)} limit - {_gib(memory.used_bytes)} in use)"
    )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB_BYTES:.2f} GiB"
