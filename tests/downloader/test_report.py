"""The board: what it knows of a run's models and when it tells whom."""

from __future__ import annotations

import logging
import threading

import pytest

from nlocalmodels_downloader.report import Board, ModelState, Outcome, RunState
from support.downloads import wait_for


class Listener:
    """A sink that keeps what it is told, and fails where a test wants it to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.runs: list[RunState] = []
        self.outcomes: list[ModelState] = []
        self.ends: list[tuple[RunState, bool]] = []
        self.summaries: list[RunState] = []
        self._error = error

    def progressed(self, run: RunState) -> None:
        self.runs.append(run)
        if self._error is not None:
            raise self._error

    def finished(self, model: ModelState) -> None:
        self.outcomes.append(model)

    def closed(self, run: RunState, completed: bool) -> None:
        self.ends.append((run, completed))

    def summarized(self, run: RunState) -> None:
        self.summaries.append(run)


class Clock:
    now_seconds = 100.0

    def __call__(self) -> float:
        return self.now_seconds


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(listener: Listener, clock: Clock) -> Board:
    return Board([listener], 60.0, clock)


def test_rate_is_of_the_last_interval(board: Board, listener: Listener, clock: Clock) -> None:
    progress = board.add("m", 1000, 100)
    for num_bytes in (300, 100, 0):
        clock.now_seconds += 10
        progress.received(num_bytes)
        board.report()
    spans = [run.models[0].span for run in listener.runs]
    assert [span.present_bytes for span in spans] == [400, 500, 500]
    assert [span.bytes_per_second for span in spans] == pytest.approx([30, 10, 0])
    assert [span.seconds_left for span in spans] == [pytest.approx(20), pytest.approx(50), None]


def test_in_all_counts_what_this_run_fetches(board: Board, listener: Listener, clock: Clock) -> None:
    board.add("kept", 700, 700)
    board.finish("kept", Outcome.KEPT)
    board.add("failed", 700, 5)
    board.finish("failed", Outcome.FAILED, "gone")
    board.add("fetched", 100, 0).received(100)
    board.finish("fetched", Outcome.FETCHED)
    first, second = board.add("first", 1000, 200), board.add("second", 1000, 0)
    clock.now_seconds += 10
    first.received(300)
    second.received(100)
    board.report()
    [run] = listener.runs
    assert [model.model_id for model in run.under_way] == ["first", "second"]
    assert (run.in_all().present_bytes, run.in_all().size_bytes) == (700, 2100)
    assert run.in_all().seconds_left == pytest.approx(35)


def test_a_model_begun_again_keeps_what_it_received(board: Board, clock: Clock) -> None:
    first = board.add("m", 1000, 0)
    first.received(1000)
    first.retrying("reset.", 0.1)
    clock.now_seconds += 1
    second = board.add("m", 1000, 0)
    second.received(10)
    board.finish("m", Outcome.FETCHED)
    clock.now_seconds += 7
    [model] = board.state().models
    assert (model.span.present_bytes, model.received_bytes, model.num_retries) == (10, 1010, 1)
    assert model.seconds == 1
    assert second.total_bytes() == 10


def test_parts_of_a_split_model_are_added_up(board: Board) -> None:
    board.add("m", 100, 100, "m-1.gguf").received(0)
    first, again = (board.add("m", 200, 0, "m-2.gguf") for _ in range(2))
    first.received(200)
    again.received(50)
    [model] = board.state().models
    assert (model.span.present_bytes, model.span.size_bytes, model.received_bytes) == (150, 300, 250)


def test_a_model_that_never_began_has_an_outcome_too(board: Board, listener: Listener) -> None:
    board.finish("m", Outcome.FAILED, "the source has no such file")
    [model] = listener.outcomes
    assert (model.outcome, model.detail, model.span.size_bytes) == (Outcome.FAILED, "the source has no such file", 0)


def test_running_reports_until_the_block_ends(listener: Listener) -> None:
    board = Board([listener], 0.01)
    num_threads = threading.active_count()
    with board.running():
        board.add("m", 10, 0)
        wait_for(lambda: len(listener.runs) >= 2, "two reports")
        board.finish("m", Outcome.FETCHED)
    assert threading.active_count() == num_threads
    [(run, completed)] = listener.ends
    assert completed
    assert run.models[0].outcome is Outcome.FETCHED


def test_running_says_that_an_exception_ended_it(board: Board, listener: Listener) -> None:
    def fail() -> None:
        with board.running():
            board.add("m", 10, 0)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    [(run, completed)] = listener.ends
    assert not completed
    assert run.models[0].outcome is None


def test_summary_tells_and_returns_the_results(board: Board, listener: Listener, clock: Clock) -> None:
    with board.running():
        clock.now_seconds += 3
    assert [board.summary()] == listener.summaries
    assert listener.summaries[0].seconds == 3


@pytest.mark.parametrize("error", [BrokenPipeError("gone"), ValueError("I/O operation on closed file")])
def test_a_sink_that_fails_is_left_out_and_the_others_go_on(
    clock: Clock, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "nlocalmodels_downloader")
    bad, good = Listener(error), Listener()
    board = Board([bad, good], 60.0, clock)
    board.report()
    board.report()
    assert (len(bad.runs), len(good.runs)) == (1, 2)
    assert len(caplog.messages) == 1
    assert str(error) in caplog.messages[0]


def test_many_threads_add_and_finish_while_it_reports(listener: Listener) -> None:
    board = Board([listener], 0.001)

    def bring(number: int) -> None:
        progress = board.add(f"m{number}", 100, 0)
        for _ in range(100):
            progress.received(1)
        board.finish(f"m{number}", Outcome.FETCHED)

    with board.running():
        threads = [threading.Thread(target=bring, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    run = board.summary()
    assert sorted(model.model_id for model in run.models) == [f"m{number}" for number in range(8)]
    assert sum(model.received_bytes for model in run.models) == 800
    assert len(listener.outcomes) == 8
