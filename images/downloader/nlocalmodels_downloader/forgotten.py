"""Unfinished downloads that nobody goes on with: of a process that is dead, for a file that is not declared any more."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nlocalmodels_downloader.progress import human_bytes
from nlocalmodels_downloader.volume import Volume

log = logging.getLogger(__name__)

# A process that only waits, for a source or a node to come back, writes nothing for a while. Removed in error, its bytes are
# fetched again and nothing else happens, so no clock has to be right.
FORGOTTEN_AFTER_SECONDS = 7 * 24 * 3600.0

_DATA = re.compile(r"([0-9a-f]{64})\.data")


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What a workspace has of one file. `size_bytes` is the disk space that it takes."""

    workspace: str
    key: str
    size_bytes: int

    def __str__(self) -> str:
        return f"what {self.workspace} had of {self.key[:12]}…"


def find_forgotten(volume: Volume, wanted_keys: Collection[str]) -> tuple[Forgotten, ...]:
    """Returns what no live process has, nobody has written to for `FORGOTTEN_AFTER_SECONDS`, and no wanted file can take over.

    Args:
        wanted_keys: the keys of files that are declared.
    """
    return tuple(
        Forgotten(folder.name, key, size_bytes)
        for folder in volume.workspaces.others()
        if not volume.workspaces.is_live(folder.name)
        for key, size_bytes in _partials(folder)
        if key not in wanted_keys and time.time() - _newest_seconds(volume, folder, key) >= FORGOTTEN_AFTER_SECONDS
    )


def discard_forgotten(volume: Volume, forgotten: Collection[Forgotten]) -> int:
    """Removes them, each unless a live process has it meanwhile. Returns the bytes freed. Failures are logged."""
    freed_bytes = 0
    for one in forgotten:
        try:
            if not volume.workspaces.discard(one.workspace, one.key):
                continue
            for lease in _leases(volume, one.key):
                lease.unlink(missing_ok=True)
        except OSError as error:
            log.warning("prune: %s stays (%s)", one, error.strerror)
            continue
        freed_bytes += one.size_bytes
        log.info("prune: %s is removed, %s freed", one, human_bytes(one.size_bytes))
    return freed_bytes


def _partials(folder: Path) -> Iterator[tuple[str, int]]:
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            if match := _DATA.fullmatch(path.name):
                yield match[1], path.lstat().st_blocks * 512


def _newest_seconds(volume: Volume, folder: Path, key: str) -> float:
    """Returns when anybody last wrote to the partial, or said that he lives and fetches the file."""
    newest_seconds = 0.0
    for path in (*folder.glob(f"{key}.*"), *_leases(volume, key)):
        # What goes in this moment is in somebody's hands.
        newest_seconds = max(newest_seconds, path.lstat().st_mtime if os.path.lexists(path) else time.time())
    return newest_seconds


def _leases(volume: Volume, key: str) -> list[Path]:
    return sorted(volume.leases.glob(f"{key}.*"))
