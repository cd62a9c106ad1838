from __future__ import annotations

import threading

import pytest

from nlocalmodels_downloader.answers import parse_retry_after
from nlocalmodels_downloader.errors import DeniedError, ExhaustedError, StoppedError, TransientError
from nlocalmodels_downloader.retry import RetryPolicy, run_until, wait_seconds


class _Attempts:
    """Fails as told: each entry is the progress made before a failure; None succeeds."""

    def __init__(self, *steps: int | None) -> None:
        self.steps = list(steps)
        self.num_calls = 0
        self.num_bytes = 0

    def __call__(self) -> str:
        self.num_calls += 1
        step = self.steps.pop(0)
        if step is None:
            return "done"
        self.num_bytes += step
        raise TransientError("not now.", retry_after_seconds=0)

    def run(self, num_attempts: int, stop: threading.Event | None = None) -> str:
        policy = RetryPolicy(num_attempts, lambda: self.num_bytes, stop or threading.Event(), lambda *_: None)
        return policy.run(self)


def test_retry_returns_what_an_attempt_returns() -> None:
    assert _Attempts(0, 0, None).run(3) == "done"


def test_retry_gives_up_after_attempts_without_progress() -> None:
    attempts = _Attempts(0, 0, 0, None)
    with pytest.raises(ExhaustedError, match="not now"):
        attempts.run(3)
    assert attempts.num_calls == 3


def test_retry_counts_anew_after_progress() -> None:
    attempts = _Attempts(0, 0, 5, 0, 5, 0, 0, None)
    with pytest.raises(ExhaustedError):
        attempts.run(3)
    assert attempts.num_calls == 7


def test_retry_passes_a_final_failure_on() -> None:
    def attempt() -> None:
        raise DeniedError("no.")

    with pytest.raises(DeniedError):
        RetryPolicy(5, lambda: 0, threading.Event(), lambda *_: None).run(attempt)


def test_retry_stops_instead_of_waiting() -> None:
    stop = threading.Event()
    stop.set()
    attempts = _Attempts(0, None)
    with pytest.raises(StoppedError):
        attempts.run(3, stop)
    assert attempts.num_calls == 1


def test_retry_waits_longer_with_each_failure_and_anew_after_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.random", lambda: 0.001)
    monkeypatch.setattr("nlocalmodels_downloader.retry.MAX_WAIT_SECONDS", 60.0)
    waits: list[float] = []
    steps = iter([0, 0, 0, 7, 0, 0])
    num_bytes = [0]

    def attempt() -> None:
        try:
            num_bytes[0] += next(steps)
        except StopIteration:
            return
        raise TransientError("not now.")

    RetryPolicy(9, lambda: num_bytes[0], threading.Event(), lambda _, seconds: waits.append(seconds)).run(attempt)
    assert waits == [0.001, 0.002, 0.004, 0.001, 0.002, 0.004]


def test_wait_seconds_is_full_jitter_up_to_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nlocalmodels_downloader.retry.MAX_WAIT_SECONDS", 60.0)
    assert wait_seconds(1, None, 0.5) == 0.5
    assert wait_seconds(3, None, 0.5) == 2.0
    assert wait_seconds(1000, None, 0.5) == 30.0


def test_wait_seconds_honours_retry_after_up_to_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nlocalmodels_downloader.retry.MAX_RETRY_AFTER_SECONDS", 300.0)
    assert wait_seconds(1, 7.0, 0.1) == 7.0
    assert wait_seconds(1, 86400.0, 0.1) == 300.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("120", 120.0),
        ("Thu, 01 Jan 1970 00:02:00 GMT", 20.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("-1", None),
        ("soon", None),
        ("\u00b2", None),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", None),
    ],
)
def test_parse_retry_after_reads_seconds_and_dates(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, now_seconds=100.0) == seconds


def test_run_until_returns_and_raises_what_the_call_does() -> None:
    assert run_until(threading.Event(), lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        run_until(threading.Event(), lambda: 1 // 0)


def test_run_until_leaves_a_call_behind_that_does_not_come_back() -> None:
    stop, forever = threading.Event(), threading.Event()
    threading.Timer(0.05, stop.set).start()
    with pytest.raises(StoppedError):
        run_until(stop, forever.wait)
    forever.set()
