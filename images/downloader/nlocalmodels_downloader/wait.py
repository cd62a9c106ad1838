"""Waits until another pod has filled the volume. It only reads, so it works on a read-only mount."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event

from nlocalmodels_downloader.config import Config, Model
from nlocalmodels_downloader.errors import ExhaustedError, StoppedError
from nlocalmodels_downloader.manifest import ManifestError, Shard, manifest_paths, read_manifest
from nlocalmodels_downloader.volume import STATE_FOLDER, Volume

# Polled, since network filesystems tell nobody of a change.
POLL_SECONDS = 2.0
REPORT_SECONDS = 30.0


def wait_for_set(
    read: Callable[[], Config], stop: Event, timeout_seconds: float | None, report: Callable[[Sequence[str]], None]
) -> None:
    """Returns when every declared file is there and one set's manifest names them all; at once when nothing is declared.

    Args:
        read: returns what is declared now. It may change: a pod that waits for a set that never comes outlives its correction.
        timeout_seconds: None waits for ever.
        report: is told what is missing, at once and then every 30 s.

    Raises:
        ExhaustedError: time is up; the message says what is missing.
        StoppedError: the stop event was set.
    """
    started_seconds = time.monotonic()
    reported_seconds: float | None = None
    while missing := missing_files(config := read()):
        now_seconds = time.monotonic()
        if timeout_seconds is not None and now_seconds - started_seconds >= timeout_seconds:
            raise ExhaustedError(
                f"{config.model_path}: not complete after {timeout_seconds:g} s: {'; '.join(missing)}. "
                "See what the downloading Job says, or wait longer with --timeout-seconds."
            )
        if reported_seconds is None or now_seconds - reported_seconds >= REPORT_SECONDS:
            report(missing)
            reported_seconds = now_seconds
        left_seconds = POLL_SECONDS
        if timeout_seconds is not None:
            left_seconds = min(left_seconds, max(0.0, started_seconds + timeout_seconds - now_seconds))
        if stop.wait(left_seconds):
            raise StoppedError("stopped while waiting for the models; start again to wait on.")


def missing_files(config: Config) -> list[str]:
    """Returns what is not as declared yet, each with the reason. Empty when the set can be served."""
    declared = [file for model in config.models for file in model.files]
    if not declared:
        return []
    sets = _read_sets(config.model_path)
    # Of several sets, the one that is nearest to what is declared tells best what is still to come.
    problems = [[_problem(config.model_path, file, files) for file in declared] for files in sets or [{}]]
    return min(([problem for problem in of_set if problem] for of_set in problems), key=len)


def _read_sets(model_path: Path) -> list[dict[str, Shard]]:
    """Returns the files of each set by name."""
    sets: list[dict[str, Shard]] = []
    try:
        paths = manifest_paths(model_path / STATE_FOLDER / "sets")
    except OSError:
        return sets  # a network filesystem in a bad moment
    for path in paths:
        try:
            sets.append({file.file: file for entry in read_manifest(path) for file in entry.files})
        except (ManifestError, OSError):
            continue  # whoever writes the volume mends or replaces it; till then it vouches for nothing
    return sets


def _problem(model_path: Path, declared: Model, files: dict[str, Shard]) -> str | None:
    name = declared.file
    named = files.get(name)
    if named is not None and declared.sha256 not in (None, named.sha256):
        named = None
    try:
        size_bytes = (model_path / name).stat().st_size
    except FileNotFoundError:
        return f"{name} is not there"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    expected_bytes = declared.size_bytes or (named.size_bytes if named else size_bytes)
    if size_bytes != expected_bytes:
        return f"{name} has {size_bytes} of {expected_bytes} bytes"
    if named is not None and (recorded := Volume(model_path, "wait").content(name)) not in (None, named.sha256):
        # Going back to a set whose manifest has stayed: its file's name still means another set's content.
        return f"{name} has the content of another set (sha256 {recorded})"
    return None if named else f"{name} is there, but no complete set names it with its digest"
