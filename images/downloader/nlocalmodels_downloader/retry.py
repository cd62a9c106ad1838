"""When to try again: full jitter, Retry-After honoured, and a budget that counts only attempts without progress."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from threading import Event
from typing import TypeVar, cast

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

        def count_failure(_: tenacity.RetryCallState) -> None:
            nonlocal seen_bytes, num_failures
            now_bytes = self._progress_bytes()
            num_failures = 1 if now_bytes > seen_bytes else num_failures + 1
            seen_bytes = max(seen_bytes, now_bytes)

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
            after=count_failure,
            stop=lambda _: num_failures >= self._num_attempts,
            wait=wait,
            before_sleep=before_sleep,
            sleep=sleep,
            retry_error_callback=give_up,
        )
        return retrying(attempt)


def run_until(stop: Event, call: Callable[[], T]) -> T:
    """Calls in a thread of its own, so that a stop need not wait for a server that is silent.

    Raises:
        StoppedError: the stop event was set before the call came back; its thread is left behind.
    """
    outcomes: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            outcomes.put((call(), None))
        except BaseException as error:
            outcomes.put((None, error))

    threading.Thread(target=work, name="call", daemon=True).start()
    while not stop.is_set():
        with suppress(queue.Empty):
            result, error = outcomes.get(timeout=0.2)
            if error is not None:
                raise error
            return cast(T, result)
    raise StoppedError("stopped while a server did not answer; the next run goes on from here.")


def wait_seconds(num_failures: int, retry_after_seconds: float | None, jitter: float) -> float:
    """Returns the wait before the next attempt: the server's wish up to a cap, else full jitter (`jitter` is in [0, 1))."""
    if retry_after_seconds is not None:
        return min(retry_after_seconds, MAX_RETRY_AFTER_SECONDS)
    return jitter * min(MAX_WAIT_SECONDS, 2.0 ** max(0, num_failures - 1))


def _transient(state: tenacity.RetryCallState) -> TransientError:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, TransientError)
    return error
