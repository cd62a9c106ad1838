from __future__ import annotations

import queue
import random
import threading

import pytest

from nlocalmodels_downloader import connections
from nlocalmodels_downloader.connections import Crew, Governor
from support.downloads import wait_for


class Told:
    """Tells a governor of seconds that pass at a rate."""

    def __init__(self, max_connections: int = 16, num_cores: int = 4) -> None:
        self.governor = Governor(max_connections, num_cores)
        self._now_seconds, self._received_bytes, self._cpu_seconds = 100.0, 0, 5.0
        self.first = self.governor.wanted(self._now_seconds, 0, self._cpu_seconds)

    def after(self, bytes_per_second: float, load: float = 0.1, seconds: float = 1.0) -> int:
        self._now_seconds += seconds
        self._received_bytes += int(bytes_per_second * seconds)
        self._cpu_seconds += load * seconds
        return self.governor.wanted(self._now_seconds, self._received_bytes, self._cpu_seconds)


@pytest.mark.parametrize(("max_connections", "first"), [(16, 2), (2, 2), (1, 1)])
def test_governor_starts_with_two_connections_at_most(max_connections: int, first: int) -> None:
    assert Told(max_connections).first == first


def test_governor_adds_connections_as_long_as_that_brings_bytes_faster() -> None:
    told = Told()
    assert [told.after(rate) for rate in (10e6, 40e6, 80e6, 160e6)] == [8, 16, 16, 16]


def test_governor_takes_back_a_step_that_brought_too_little() -> None:
    told = Told()
    assert [told.after(rate) for rate in (10e6, 40e6)] == [8, 16]
    assert [told.after(rate) for rate in (41e6, 42e6, 500e6)] == [16, 8, 8]


def test_governor_takes_back_the_first_step_whole() -> None:
    told = Told()
    assert [told.after(rate) for rate in (10e6, 11e6, 12e6, 500e6)] == [8, 8, 2, 2]


def test_governor_gives_new_connections_time_to_come_up_to_speed() -> None:
    told = Told()
    assert told.after(10e6) == 8
    assert [told.after(10e6, seconds=0.3) for _ in range(5)] == [8] * 5
    assert told.after(40e6) == 16


def test_governor_never_goes_beyond_the_most_allowed() -> None:
    told = Told(max_connections=5)
    assert [told.after(rate) for rate in (10e6, 25e6, 40e6)] == [5, 5, 5]


@pytest.mark.parametrize("max_connections", [1, 2])
def test_governor_that_may_add_nothing_takes_nothing_back(max_connections: int) -> None:
    told = Told(max_connections)
    assert [told.after(rate) for rate in (10e6, 10e6, 1e6, 1e6)] == [max_connections] * 4


def test_governor_adds_nothing_when_the_machine_is_busy() -> None:
    assert Told(num_cores=2).after(10e6, load=1.2) == 2
    told = Told(num_cores=2)
    assert [told.after(10e6, load=0.4), told.after(20e6, load=1.2), told.after(80e6, load=0.1)] == [8, 8, 8]


def test_governor_adds_nothing_to_connections_that_each_keep_a_core_busy() -> None:
    assert Told(num_cores=2).after(10e6, load=0.6) == 2
    assert Told(num_cores=8).after(10e6, load=0.6) == 8
    told = Told(num_cores=2)
    assert [told.after(10e6, load=0.4), told.after(20e6, load=0.6)] == [8, 16]


def test_governor_takes_back_what_made_the_machine_busy_and_brought_too_little() -> None:
    told = Told(num_cores=2)
    assert [told.after(10e6, load=0.4), told.after(11e6, load=1.2)] == [8, 2]


def test_governor_decides_nothing_from_a_moment() -> None:
    told = Told()
    assert told.after(10e6, seconds=0.1) == 2
    assert told.after(10e6, seconds=0.15) == 8


def test_governor_waits_for_the_first_bytes() -> None:
    told = Told()
    assert [told.after(0), told.after(0), told.after(10e6)] == [2, 2, 8]


def test_governor_halves_for_good_when_asked_to() -> None:
    told = Told()
    told.after(10e6)
    told.governor.back_off()
    assert [told.after(rate) for rate in (40e6, 400e6)] == [4, 4]
    for expected in (2, 1, 1):
        told.governor.back_off()
        assert told.after(900e6) == expected


@pytest.mark.parametrize("seed", range(50))
def test_governor_stays_within_its_bounds_whatever_it_is_told(seed: int) -> None:
    chance = random.Random(seed)
    max_connections = chance.randint(1, 16)
    told = Told(max_connections, chance.randint(1, 64))
    for _ in range(50):
        if chance.random() < 0.05:
            told.governor.back_off()
        now = told.after(chance.choice([0, 1, 1e6, 1e9]) * chance.random(), chance.random() * 4, chance.random())
        assert 1 <= now <= max_connections


class Work:
    """Work of which a test hands out one piece at a time."""

    def __init__(self) -> None:
        self.answers: queue.SimpleQueue[bool | BaseException] = queue.SimpleQueue()
        self.started = threading.Semaphore(0)
        self.num_connections: list[int] = []

    def __call__(self, num_connections: int) -> bool:
        self.num_connections.append(num_connections)
        self.started.release()
        answer = self.answers.get(timeout=20)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def wait_for_start(self, times: int) -> None:
        for _ in range(times):
            assert self.started.acquire(timeout=20)


def _started(work: Work, max_connections: int) -> Crew:
    crew = Crew(work, max_connections)
    crew.start()
    return crew


def _run_out(crew: Crew) -> list[BaseException]:
    """Ticks until nobody is left and returns the errors."""
    errors: list[BaseException] = []

    def is_over() -> bool:
        outcome = crew.tick(0, 0.05) if crew.num_running else None
        if outcome is not None:
            errors.append(outcome)
        return crew.num_running == 0

    wait_for(is_over, "the crew's end")
    return errors


@pytest.fixture
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a crew grow with every tick that brings more bytes, on however busy a machine."""
    monkeypatch.setattr(connections, "_CHECK_SECONDS", 1e-9)
    monkeypatch.setattr(connections, "_BUSY_SHARE", 1e9)


def test_crew_works_until_there_is_no_more_work() -> None:
    work = Work()
    crew = _started(work, 2)
    work.wait_for_start(2)
    for answer in (True, True, True, False, False):
        work.answers.put(answer)
    assert _run_out(crew) == []
    assert work.num_connections == [2] * 5


def test_crew_of_one_has_one_thread() -> None:
    work = Work()
    crew = _started(work, 1)
    work.wait_for_start(1)
    assert crew.num_running == 1
    work.answers.put(False)
    assert _run_out(crew) == []
    assert work.num_connections == [1]


def test_crew_hands_on_every_error() -> None:
    work = Work()
    crew = _started(work, 2)
    work.wait_for_start(2)
    errors = [ValueError("one"), KeyboardInterrupt("two")]
    for error in errors:
        work.answers.put(error)
    assert sorted(map(str, _run_out(crew))) == ["one", "two"]


def test_crew_goes_on_after_a_tick_in_which_nobody_ended() -> None:
    work = Work()
    crew = _started(work, 2)
    assert crew.tick(0, 0.0) is None
    assert crew.num_running == 2
    for error in (ValueError("one"), ValueError("two")):
        work.answers.put(error)
    assert len(_run_out(crew)) == 2


@pytest.mark.usefixtures("_eager")
def test_crew_grows_while_bytes_come_ever_faster() -> None:
    work = Work()
    crew = _started(work, 8)
    work.wait_for_start(2)
    for number in range(1, 5):
        crew.tick(10 ** (5 * number), 0.0)
    assert crew.num_running == 8
    work.wait_for_start(6)
    for _ in range(8):
        work.answers.put(False)
    assert _run_out(crew) == []
    assert max(work.num_connections) == 8


@pytest.mark.usefixtures("_eager")
def test_crew_does_not_grow_once_somebody_found_nothing_to_do() -> None:
    work = Work()
    crew = _started(work, 8)
    work.wait_for_start(2)
    work.answers.put(False)
    wait_for(lambda: crew.tick(0, 0.05) is None and crew.num_running == 1, "one to end")
    for number in range(1, 5):
        crew.tick(10 ** (5 * number), 0.0)
    assert crew.num_running == 1
    work.answers.put(False)
    assert _run_out(crew) == []


def test_crew_backs_off_to_half_after_what_they_are_at() -> None:
    work = Work()
    crew = _started(work, 2)
    work.wait_for_start(2)
    crew.back_off()

    def has_one_ended() -> bool:
        work.answers.put(True)
        return crew.tick(0, 0.01) is None and crew.num_running == 1

    wait_for(has_one_ended, "one to end")
    for answer in (True, False):
        work.answers.put(answer)
    assert _run_out(crew) == []
    assert work.num_connections[:2] == [2, 2]
    assert set(work.num_connections[2:]) == {1}
