"""Removes what no kept set needs: only what the downloader itself put on the volume, and nothing in doubt."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from nlocalmodels_downloader.forgotten import Forgotten, discard_forgotten, find_forgotten
from nlocalmodels_downloader.former import FORMER_FOLDER
from nlocalmodels_downloader.manifest import ManifestEntry, ManifestError, Shard, manifest_paths, read_manifest
from nlocalmodels_downloader.progress import human_bytes
from nlocalmodels_downloader.volume import FOUND_ON_VOLUME, STATE_FOLDER, Volume, sync_folder

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What would go. `problem` says why nothing does although something might have to."""

    root: Path
    keep_sets: int
    current_set: str
    declared_files: frozenset[str]
    files: tuple[Shard, ...] = ()
    sets: tuple[str, ...] = ()
    problem: str | None = None
    wanted_keys: frozenset[str] = frozenset()
    partials: tuple[Forgotten, ...] = ()

    @property
    def freed_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files) + sum(partial.size_bytes for partial in self.partials)

    def __str__(self) -> str:
        if self.problem is not None:
            return f"to prune: nothing ({self.problem})"
        lines = [f"to prune: {file.file} ({human_bytes(file.size_bytes)})" for file in self.files]
        lines += [f"to prune: {partial} ({human_bytes(partial.size_bytes)})" for partial in self.partials]
        sets = f"sets {', '.join(self.sets)}" if self.sets else "no set"
        return "\n".join([*lines, f"to prune: {sets}, {human_bytes(self.freed_bytes)} in all"])


def plan_prune(
    root: Path, keep_sets: int, current_set: str, declared_files: Collection[str] = (), wanted_keys: Collection[str] = ()
) -> PrunePlan:
    """Decides from the volume alone and changes nothing.

    Args:
        keep_sets: how many sets stay, the current one among them.
        current_set: the id of the set that has just become complete.
        declared_files: files that stay in any case; needed only where the current set has no manifest yet.
        wanted_keys: digests of files that are still to be fetched: what anybody has of them stays.
    """
    if keep_sets < 1:
        raise ValueError(f"keep_sets is {keep_sets}, but the current set always stays; give 1 or more")
    plan = PrunePlan(root, keep_sets, current_set, frozenset(declared_files), wanted_keys=frozenset(wanted_keys))
    manifests: dict[str, tuple[ManifestEntry, ...]] = {}
    try:
        for path in manifest_paths(root / STATE_FOLDER / "sets"):
            manifests[path.stem] = read_manifest(path)
    except (ManifestError, OSError) as error:
        return _refused(plan, f"{error}; what that set needs is not known")
    if current_set not in manifests and not declared_files:
        return _refused(plan, f"set {current_set} has no manifest")
    others = [identity for identity in manifests if identity != current_set]
    kept_sets = [current_set, *others[: keep_sets - 1]]
    removed_sets = others[keep_sets - 1 :]
    kept_files = plan.declared_files | {
        file.file for identity in kept_sets for entry in manifests.get(identity, ()) for file in entry.files
    }
    volume = Volume(root, "prune")
    files: dict[str, Shard] = {}
    for identity in removed_sets:
        for file in (file for entry in manifests[identity] for file in entry.files):
            # By digest, too: another process may have published a newer file of this name, its manifest still to come.
            if file.file not in kept_files and _is_published(volume, file.file, file.sha256):
                files[file.file] = file
    needed = {file.sha256 for identity in kept_sets for entry in manifests.get(identity, ()) for file in entry.files}
    for sha256, size_bytes in volume.former.contents().items():
        if sha256 not in needed:
            name = f"{STATE_FOLDER}/{FORMER_FOLDER}/{sha256}"
            files[name] = Shard(name, sha256, size_bytes)
    partials = find_forgotten(volume, plan.wanted_keys)
    return replace(plan, files=tuple(files.values()), sets=tuple(removed_sets), partials=partials)


def apply_prune(plan: PrunePlan) -> int:
    """Removes what is in the plan and would still be in a new one. Returns the bytes freed. Failures are logged.

    A set's manifest goes after its files, so a kill in between leaves what the next plan needs.
    """
    if not (plan.sets or plan.partials):
        return 0
    now = plan_prune(plan.root, plan.keep_sets, plan.current_set, plan.declared_files, plan.wanted_keys)
    state = plan.root / STATE_FOLDER
    freed_bytes = discard_forgotten(Volume(plan.root, "prune"), [one for one in plan.partials if one in now.partials])
    if not plan.sets:
        return freed_bytes
    num_failures = 0
    for file in plan.files:
        if file not in now.files:
            continue
        try:
            (plan.root / file.file).unlink()
            # Not before the file: without its record it would be taken for a person's for good.
            (state / "verified" / f"{file.file}.json").unlink(missing_ok=True)
        except OSError as error:
            log.warning("prune: %s stays (%s)", file.file, error.strerror)
            num_failures += 1
            continue
        freed_bytes += file.size_bytes
        log.info("prune: %s is removed, %s freed", file.file, human_bytes(file.size_bytes))
    if num_failures:
        return freed_bytes
    with suppress(OSError):
        sync_folder(plan.root)
    for identity in plan.sets:
        if identity not in now.sets:
            continue
        try:
            _remove_records(plan.root, identity)
            (state / "sets" / f"{identity}.json").unlink(missing_ok=True)
        except OSError as error:
            log.warning("prune: the manifest of set %s stays (%s)", identity, error.strerror)
        else:
            log.info("prune: set %s is forgotten", identity)
    return freed_bytes


def _remove_records(root: Path, identity: str) -> None:
    """Removes the records of a set's files that are no more, as a kill between a file and its record leaves one."""
    state = root / STATE_FOLDER
    with suppress(ManifestError, FileNotFoundError):
        for file in (file for entry in read_manifest(state / "sets" / f"{identity}.json") for file in entry.files):
            if not os.path.lexists(root / file.file):
                (state / "verified" / f"{file.file}.json").unlink(missing_ok=True)


def _is_published(volume: Volume, file: str, sha256: str) -> bool:
    path = volume.path(file)
    # The downloader never publishes a link, so a link is a person's even if it leads to a file that matches.
    if path.is_symlink() or not path.is_file():
        return False
    recorded = volume.recorded(file)
    return recorded is not None and recorded.sha256 == sha256 and recorded.source != FOUND_ON_VOLUME


def _refused(plan: PrunePlan, problem: str) -> PrunePlan:
    log.warning("prune: nothing is removed: %s", problem)
    return replace(plan, problem=problem)
