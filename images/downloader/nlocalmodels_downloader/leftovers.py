"""Removes what killed processes have left beside the models, once a set is complete."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path

from nlocalmodels_downloader.volume import Volume

log = logging.getLogger(__name__)

# What lease.py keeps: a generation, or what is about to be one.
_LEASE = re.compile(r"\.?(.+)\.(\d{1,15}|[0-9a-f]{32}\.new)")


def discard_leftovers(volume: Volume, keys_done: set[str]) -> None:
    """Removes leases that hold nobody up, what was being written, and what dead processes have of published files.

    Args:
        keys_done: the keys of the files that are published.
    """
    discard_unnamed(volume)
    for name in _names(volume.leases):
        path = volume.leases / name
        holder = _holder(path)
        is_own = holder is not None and holder == volume.workspaces.own_name
        is_done = (match := _LEASE.fullmatch(name)) is not None and match[1] in keys_done
        if is_own or (is_done and not (holder and volume.workspaces.is_live(holder))):
            _remove(path)
    volume.workspaces.discard_dead(keys_done)


def discard_unnamed(volume: Volume) -> None:
    """Removes records and manifests that never got their names.

    A live process may lose one that it is about to rename, and then writes it again.
    """
    for folder in (volume.state / "verified", volume.state / "sets"):
        for name in _names(folder):
            if name.startswith(".") and name.endswith(".new"):
                _remove(folder / name)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _holder(path: Path) -> str | None:
    """Returns whose lease it is, None of one that was not written to its end."""
    try:
        return str(json.loads(path.read_bytes())["holder"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s, which a killed process has left, cannot be removed (%s)", path, error)
