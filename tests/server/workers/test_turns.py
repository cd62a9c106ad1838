"""Processes that take turns: one at a time, each its share, whatever becomes of the others."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nlocalmodels_server.workers.turns import _FIRST_PLACE, MAX_CHARGE_NS, NUM_PLACES, Turn, TurnTable

Step = tuple[int, int]
PATIENT = 60.0
FOREVER_SECONDS = 1000.0


class Taker:
    """A process that computes in its turn, step after step."""

    def __init__(self, table: TurnTable, folder: Path, step_seconds: float, patience_seconds: float = PATIENT) -> None:
        self.place = table.take_place()
        self._output = folder / f"{self.place}-{time.monotonic_ns()}"
        arguments = [str(argument) for argument in (table.fd, self.place, patience_seconds, step_seconds)]
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "support.turn_taker", *arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                pass_fds=[table.fd],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )

    def steps(self) -> list[Step]:
        whole = self._output.read_text().rpartition("\n")[0].splitlines()
        return [(int(start), int(end)) for start, end in (line.split() for line in whole)]

    def wait_for_steps(self, num_more: int) -> None:
        wanted, deadline = len(self.steps()) + num_more, time.monotonic() + 60
        while len(self.steps()) < wanted:
            assert self.process.poll() is None
            assert time.monotonic() < deadline, f"{len(self.steps())} of {wanted} steps"
            time.sleep(0.01)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()


@contextmanager
def takers(folder: Path, *step_seconds: float, patience_seconds: float = PATIENT) -> Iterator[list[Taker]]:
    table = TurnTable()
    all_takers = [Taker(table, folder, seconds, patience_seconds) for seconds in step_seconds]
    try:
        for taker, seconds in zip(all_takers, step_seconds, strict=True):
            if seconds < FOREVER_SECONDS:
                taker.wait_for_steps(1)
        yield all_takers
    finally:
        for taker in all_takers:
            taker.end()
        table.close()


def assert_no_overlap(*steps: list[Step]) -> None:
    ordered = sorted(step for of_one in steps for step in of_one)
    for (_, end), (start, _) in itertools.pairwise(ordered):
        assert end <= start


def wish(table: TurnTable, place: int) -> int:
    return int(table._words[_FIRST_PLACE + 2 * place + 1])


def computed_ns(steps: list[Step], since_ns: int, until_ns: int) -> int:
    return sum(end - start for start, end in steps if start >= since_ns and end <= until_ns)


def test_one_computes_at_a_time_and_each_has_its_share_of_time(tmp_path: Path) -> None:
    with takers(tmp_path, 0.002, 0.005, 0.04) as all_takers:
        all_takers[2].wait_for_steps(1)
        since_ns = time.monotonic_ns()
        all_takers[2].wait_for_steps(15)
        until_ns = time.monotonic_ns()
        steps = [taker.steps() for taker in all_takers]
    assert_no_overlap(*steps)
    shares = [computed_ns(of_one, since_ns, until_ns) for of_one in steps]
    # Each differs from the others by some slices at most, although the steps of one are twenty times as long.
    assert min(shares) > 0.6 * max(shares), shares


def test_step_during_which_the_machine_stood_still_counts_as_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    table = TurnTable()
    turn = Turn(table.fd, table.take_place())
    stood_still_ns = time.monotonic_ns() + 60_000_000_000
    with turn:
        monkeypatch.setattr("nlocalmodels_server.workers.turns.time.monotonic_ns", lambda: stood_still_ns)
    assert table._words[_FIRST_PLACE] == MAX_CHARGE_NS
    table.close()


def test_one_alone_is_never_kept_waiting(tmp_path: Path) -> None:
    table = TurnTable()
    turn = Turn(table.fd, table.take_place())
    for _ in range(1000):
        with turn:
            pass
    table.close()


def test_turn_of_a_killed_holder_passes_to_the_next(tmp_path: Path) -> None:
    with takers(tmp_path, 0.5, 0.5, 0.001) as (first, second, third):
        for victim in (first, second):
            victim.process.kill()  # with steps that long it holds the turn, or waits for it
            third.wait_for_steps(20)
        assert_no_overlap(third.steps())


def test_a_holder_that_hangs_is_passed_over(tmp_path: Path) -> None:
    with takers(tmp_path, FOREVER_SECONDS, 0.001, 0.001, patience_seconds=0.3) as (first, second, third):
        first.process.send_signal(signal.SIGSTOP)
        second.wait_for_steps(20)
        third.wait_for_steps(20)


def test_one_that_was_stopped_while_it_waited_is_passed_over(tmp_path: Path) -> None:
    table = TurnTable()
    turn = Turn(table.fd, table.take_place())
    with turn:
        stopped, other = Taker(table, tmp_path, 0.001), Taker(table, tmp_path, 0.001)
        while any(wish(table, taker.place) == 0 for taker in (stopped, other)):
            time.sleep(0.01)
        stopped.process.send_signal(signal.SIGSTOP)
    try:
        other.wait_for_steps(20)
        assert stopped.steps() == []
    finally:
        stopped.end()
        other.end()
        table.close()


def test_a_place_is_given_again_when_its_process_has_ended() -> None:
    table = TurnTable()
    places = [table.take_place() for _ in range(3)]
    assert places == [0, 1, 2]
    table.give_back(1)
    assert (table.take_place(), table.take_place()) == (1, 3)
    table.close()


def test_more_processes_than_places_are_refused() -> None:
    table = TurnTable()
    for _ in range(NUM_PLACES):
        table.take_place()
    with pytest.raises(OSError, match="more than 1024 processes"):
        table.take_place()
    table.close()
