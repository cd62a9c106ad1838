"""When to try again: full jitter, Retry-After honoured, and a budget that counts only attempts without progress."""

from __future__ import annotations

import random
from collections.abc import Callable
from threading import Event
from typing import TypeVar

import tenacity

from nlocalmodels_downloader.errors import ExhaustedError, StoppedError, TransientError

T = TypeVar("T")

MAX_WAIT_SECONDS = 60.0
MAX_RETRY_AFTER_SECONDS = 300.0


class RetryPolicy:
    """Builds the retry loop of one transfer.

    Args:
        num_attempts: consecutive attempts without a new byte before the transfer is given up.
        progress_bytes: returns a number that grows with every byte that is safely stored.
        stop: ends a wait at once.
        on_retry: is told the reason and the wait in seconds.
    """

    def __init__(
        self,
        num_attempts: int,
        progress_bytes: Callable[[], int],
        stop: Event,
        on_retry: Callable[[str, float], None],
    ) -> None:
        self._num_attempts = num_attempts
        self._progress_bytes = progress_bytes
        self._stop = stop
        self._on_retry = on_retry

    def run(self, attempt: Callable[[], T]) -> T:
        """Calls `attempt` until it returns.

        Raises:
            ExhaustedError: too many attempts in a row brought nothing.
            StoppedError: the stop event was set while waiting.
        """
        seen_bytes = self._progress_bytes()
        num_failures = 0

        def without_progress(_: tenacity.RetryCallState) -> bool:
            nonlocal seen_bytes, num_failures
            now_bytes = self._progress_bytes()
            num_failures = 1 if now_bytes > seen_bytes else num_failures + 1
            seen_bytes = max(seen_bytes, now_bytes)
            return num_failures >= self._num_attempts

        def wait(state: tenacity.RetryCallState) -> float:
            return wait_seconds(num_failures, _transient(state).retry_after_seconds, random.random())

        def before_sleep(state: tenacity.RetryCallState) -> None:
            self._on_retry(str(_transient(state)), state.upcoming_sleep)

        def sleep(seconds: float) -> None:
            if self._stop.wait(seconds):
                raise StoppedError("stopped while waiting to try again; the next run goes on from here.")

        def give_up(state: tenacity.RetryCallState) -> T:
            raise ExhaustedError(
                f"{num_failures} attempts in a row brought nothing; the last one: {_transient(state)} "
                "What has arrived is kept; run again to go on."
            )

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TransientError),
            stop=without_progress,
            wait=wait,
            before_sleep=before_sleep,
            sleep=sleep,
            retry_error_callback=give_up,
        )
        return retrying(attempt)


def wait_seconds(num_failures: int, retry_after_seconds: float | None, jitter: float) -> float:
    """Returns the wait before the next attempt: the server's wish up to a cap, else full jitter (`jitter` is in [0, 1))."""
    if retry_after_seconds is not None:
        return min(retry_after_seconds, MAX_RETRY_AFTER_SECONDS)
    return jitter * min(MAX_WAIT_SECONDS, 2.0 ** max(0, num_failures - 1))


def _transient(state: tenacity.RetryCallState) -> TransientError:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, TransientError)
    return error
