"""Keeps a volume equal to a list that changes, as a sidecar does."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

from nlocalmodels_downloader.config import Config
from nlocalmodels_downloader.errors import (
    CorruptError,
    DeniedError,
    DownloaderError,
    GoneError,
    RefusedError,
    StoppedError,
)
from nlocalmodels_downloader.followed import FollowedList
from nlocalmodels_downloader.sync import Failure

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 5.0
MAX_RETRY_SECONDS = 300.0
# What another attempt would say again: a wrong digest would cost the whole download each time.
_FINAL = (DeniedError, GoneError, CorruptError, RefusedError)


def watch(
    config_path: Path,
    sync_once: Callable[[Config], list[Failure]],
    stop: Event,
    poll_seconds: float = 5.0,
    recheck_seconds: float = 300.0,
) -> int:
    """Syncs now, whenever the list's content changes, and every `recheck_seconds`. Returns 0 when told to stop.

    Raises:
        ConfigError: the list is wrong from the beginning.
    """
    followed = FollowedList(config_path)
    num_failures = 0
    due_seconds = time.monotonic()
    while not stop.is_set():
        if followed.refresh():
            num_failures, due_seconds = 0, time.monotonic()
        if time.monotonic() >= due_seconds:
            errors = _sync(sync_once, followed.config, stop)
            num_failures = num_failures + 1 if errors else 0
            wait_seconds = recheck_seconds
            if not all(isinstance(error, _FINAL) for error in errors):
                wait_seconds = min(recheck_seconds, retry_seconds(num_failures))
            if errors:
                log.warning("the volume is not up to date; trying again in %.0f s", wait_seconds)
            due_seconds = time.monotonic() + wait_seconds
        stop.wait(min(poll_seconds, max(0.0, due_seconds - time.monotonic())))
    return 0


def retry_seconds(num_failures: int) -> float:
    """Returns the wait after so many failed syncs in a row."""
    return min(MAX_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(num_failures - 1, 16))


def _sync(sync_once: Callable[[Config], list[Failure]], config: Config, stop: Event) -> list[DownloaderError]:
    """Returns what went wrong."""
    try:
        return [failure.error for failure in sync_once(config)]
    except StoppedError:
        if not stop.is_set():
            raise
        return []
    except DownloaderError as error:
        log.error("%s", error)
        return [error]
