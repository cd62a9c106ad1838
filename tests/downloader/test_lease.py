"""Leases between objects that stand for pods, and between processes that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from nlocalmodels_downloader.errors import StoppedError
from nlocalmodels_downloader.lease import Lease, Turn, leased_keys, wait_for_turn

KEY = "ab" * 32
TTL = 0.3
BEAT = 0.02

# Acquires when told to, says whether it did, and holds until its input ends.
HOLDER = """
import pathlib, sys
from nlocalmodels_downloader.lease import Lease
lease = Lease(pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3], 30, 0.02)
print("ready", flush=True)
sys.stdin.readline()
acquired = lease.try_acquire()
print(acquired, flush=True)
if acquired:
    with lease.held(lambda: 7):
        sys.stdin.read()
else:
    sys.stdin.read()
"""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A monotonic clock that goes on when the test says so."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("nlocalmodels_downloader.lease.time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def _lease(folder: Path, holder: str = "pod.0", ttl_seconds: float = 30.0) -> Lease:
    return Lease(folder, KEY, holder, ttl_seconds, BEAT)


def _wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.005)


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def _say(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdin is not None
    process.stdin.write(word + "\n")
    process.stdin.flush()


def _hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@contextmanager
def _process(folder: Path, holder: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(folder), KEY, holder]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_lease_has_one_holder_until_it_is_released(tmp_path: Path) -> None:
    one, other = _lease(tmp_path, "one.0"), _lease(tmp_path, "other.0")
    assert one.holder() is None
    assert one.present_bytes() is None
    assert not one.is_mine()
    assert one.try_acquire()
    assert one.try_acquire(), "asking again changes nothing"
    assert not other.try_acquire()
    assert (one.is_mine(), other.is_mine()) == (True, False)
    assert other.holder() == "one.0"
    one.release()
    one.release()
    assert not one.is_mine()
    assert other.try_acquire()
    other.release()
    assert _names(tmp_path) == []


def test_leases_of_other_files_are_independent(tmp_path: Path) -> None:
    one, other = _lease(tmp_path, "one.0"), Lease(tmp_path, "cd" * 32, "other.0")
    assert one.try_acquire()
    assert other.try_acquire()
    assert leased_keys(tmp_path) == {KEY, "cd" * 32}
    other.release()
    assert one.is_mine()
    assert leased_keys(tmp_path) == {KEY}
    assert leased_keys(tmp_path / "none") == set()


def test_one_of_eight_processes_wins(tmp_path: Path) -> None:
    with ExitStack() as stack:
        processes = [stack.enter_context(_process(tmp_path, f"pod{number}.0")) for number in range(8)]
        assert [_hear(process) for process in processes] == ["ready"] * 8
        for process in processes:
            _say(process, "go")
        assert sorted(_hear(process) for process in processes) == ["False"] * 7 + ["True"]


def test_many_threads_take_turns_and_never_two_at_once(tmp_path: Path) -> None:
    holders: list[str] = []
    problems: list[object] = []
    num_turns = [0] * 4

    def take_turns(number: int) -> None:
        deadline = time.monotonic() + 20
        while num_turns[number] < 25:
            if time.monotonic() > deadline:
                problems.append(f"thread {number} had {num_turns[number]} turns")
                return
            lease = _lease(tmp_path, f"pod{number}.0")
            if lease.try_acquire():
                holders.append(f"pod{number}.0")
                problems.extend([list(holders)] if len(holders) > 1 else [])
                problems.extend([] if lease.is_mine() else ["lost without having been held up"])
                holders.remove(f"pod{number}.0")
                lease.release()
                num_turns[number] += 1

    threads = [threading.Thread(target=take_turns, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert _names(tmp_path) == []


def test_the_lease_of_a_killed_process_is_taken_over_after_a_while(tmp_path: Path) -> None:
    with _process(tmp_path, "dead.0") as process:
        _hear(process)
        _say(process, "go")
        assert _hear(process) == "True"
        lease = _lease(tmp_path, ttl_seconds=TTL)
        _wait_for(lambda: lease.present_bytes() == 7, "the first beat")
        process.send_signal(signal.SIGKILL)
        process.wait()
    (tmp_path / f".{KEY}.{'0' * 32}.new").touch()  # killed while writing
    assert lease.holder() == "dead.0"
    assert not lease.try_acquire()
    _wait_for(lease.try_acquire, "the lease")
    assert lease.is_mine()
    assert _names(tmp_path) == [f"{KEY}.2"]


def test_a_live_holder_keeps_its_lease_until_it_beats_no_more(tmp_path: Path, clock: SimpleNamespace) -> None:
    holder, other = _lease(tmp_path, "one.0"), _lease(tmp_path, "other.0", ttl_seconds=90.0)
    assert holder.try_acquire()
    for num_bytes in range(1, 6):
        assert holder._beat(num_bytes)
        assert not other.try_acquire()
        clock.now += 80.0
    assert holder.is_mine()
    assert other.present_bytes() == 5
    clock.now += 10.0
    assert other.try_acquire()
    assert not holder._beat(6)
    assert other.is_mine()


def test_held_beats_in_the_background_and_releases(tmp_path: Path) -> None:
    holder, present = _lease(tmp_path), iter(range(1, 1_000_000))
    assert holder.try_acquire()
    with holder.held(lambda: next(present)):
        _wait_for(lambda: (holder.present_bytes() or 0) > 5, "beats")
        assert holder.is_mine()
    assert _names(tmp_path) == []
    with pytest.raises(KeyError), holder.held(lambda: 0):
        raise KeyError("a download that fails")
    assert _names(tmp_path) == []


def test_a_former_life_of_the_same_pod_is_succeeded_at_once(tmp_path: Path) -> None:
    former, present = _lease(tmp_path), _lease(tmp_path)
    assert former.try_acquire()
    assert present.try_acquire()
    assert present.is_mine()
    assert not former.is_mine()
    former.release()
    assert present.is_mine()


def test_a_holder_that_was_held_up_finds_its_lease_gone_and_leaves_it_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    late, other = _lease(tmp_path, "late.0"), _lease(tmp_path, "other.0", ttl_seconds=TTL)
    assert late.try_acquire()
    _wait_for(other.try_acquire, "the lease")
    with late.held(lambda: 0):
        _wait_for(lambda: "has gone to another process" in caplog.text, "the notice")
        assert not late.is_mine()
    assert other.is_mine()
    assert _names(tmp_path) == [f"{KEY}.2"]


def test_a_holder_that_was_held_up_does_not_release_the_lease_of_another(tmp_path: Path, clock: SimpleNamespace) -> None:
    late, other, third = (_lease(tmp_path, f"{name}.0") for name in ("late", "other", "third"))
    assert late.try_acquire()
    assert not other.try_acquire()
    clock.now += 30.0
    assert other.try_acquire()
    other.release()
    assert third.try_acquire(), "with the number that the late one had"
    late.release()
    assert third.is_mine()


def test_a_beat_under_way_at_the_end_does_not_bring_the_lease_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, begun, ending = os.replace, threading.Event(), threading.Event()

    def replace_late(source: Path, target: Path) -> None:
        begun.set()
        ending.wait(20)
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_late)
    lease = _lease(tmp_path)
    assert lease.try_acquire()
    with lease.held(lambda: 0):
        assert begun.wait(20)
        threading.Timer(0.05, ending.set).start()
    _wait_for(lambda: not any(thread.name.startswith("lease-") for thread in threading.enumerate()), "the last beat")
    assert _names(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"token": "x", "nonce": "y"}', b"\xff\xfe"])
def test_garbage_of_a_crash_is_taken_over_after_a_while(tmp_path: Path, content: bytes) -> None:
    (tmp_path / f"{KEY}.41").write_bytes(content)
    lease = _lease(tmp_path, ttl_seconds=0.05)
    assert not lease.try_acquire()
    assert lease.holder() == "unknown"
    _wait_for(lease.try_acquire, "the lease")
    assert _names(tmp_path) == [f"{KEY}.42"]


@pytest.mark.parametrize("error", [FileExistsError(17, "File exists"), FileNotFoundError(2, "No such file")])
def test_link_that_succeeded_and_reports_an_error_is_a_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    """As NFS does when the answer to the first request was lost."""
    link = os.link

    def link_and_fail(source: Path, target: Path) -> None:
        link(source, target)
        raise error

    monkeypatch.setattr(os, "link", link_and_fail)
    lease = _lease(tmp_path)
    assert lease.try_acquire()
    assert lease.is_mine()


def test_replace_that_succeeded_and_reports_an_error_keeps_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def replace_and_fail(source: Path, target: Path) -> None:
        replace(source, target)
        raise FileNotFoundError(2, "No such file")

    monkeypatch.setattr(os, "replace", replace_and_fail)
    lease = _lease(tmp_path)
    assert lease.try_acquire()
    path = tmp_path / f"{KEY}.1"
    with lease.held(lambda: 0):
        _wait_for(lambda: json.loads(path.read_bytes())["nonce"] > 3, "beats")
        assert lease.is_mine()


def test_the_loser_of_a_race_over_an_old_listing_withdraws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer generation than the one listed makes the link of an older one succeed."""
    listdir = os.listdir
    present, late = _lease(tmp_path, "present.0"), _lease(tmp_path, "late.0")
    (tmp_path / f"{KEY}.6").write_bytes(b"")
    present._ttl_seconds = 0.0
    assert present.try_acquire()
    old_listings: list[list[str]] = [[]]
    monkeypatch.setattr(os, "listdir", lambda path: old_listings.pop() if old_listings else listdir(path))
    assert not late.try_acquire()
    monkeypatch.undo()
    assert _names(tmp_path) == [f"{KEY}.7"]
    assert present.is_mine()


def _wait(lease: Lease, is_done: Callable[[], bool] = lambda: False, budget_seconds: float = 30.0) -> Turn:
    return wait_for_turn(lease, is_done, threading.Event(), budget_seconds, lambda _: None, 0.005)


def test_waiting_ends_at_once_when_the_file_is_there_or_nobody_fetches_it(tmp_path: Path) -> None:
    assert _wait(_lease(tmp_path), lambda: True) is Turn.DONE
    lease = _lease(tmp_path)
    assert _wait(lease) is Turn.MINE
    assert lease.is_mine()


def test_waiting_ends_when_the_holder_publishes(tmp_path: Path) -> None:
    holder, lease, said = _lease(tmp_path, "one.0"), _lease(tmp_path, "other.0"), list[str]()
    published = threading.Event()
    assert holder.try_acquire()

    def on_wait(sentence: str) -> None:
        said.append(sentence)
        if len(said) == 3:
            published.set()
            holder.release()

    with holder.held(lambda: 3 * 1024 * 1024):
        _wait_for(lambda: holder.present_bytes() == 3 * 1024 * 1024, "the first beat")
        turn = wait_for_turn(lease, published.is_set, threading.Event(), 30.0, on_wait, 0.005, 0.01)
    assert turn is Turn.DONE
    assert said == ["one.0 is fetching it and has 3.0 MiB; waiting for it"] * 3
    assert _names(tmp_path) == []


def test_a_file_published_between_the_questions_is_not_fetched_again(tmp_path: Path) -> None:
    answers = iter([False, True])
    assert _wait(_lease(tmp_path), lambda: next(answers)) is Turn.DONE
    assert _names(tmp_path) == []


def test_waiting_goes_on_while_the_holder_gets_further_and_ends_when_it_does_not(
    tmp_path: Path, clock: SimpleNamespace
) -> None:
    holder, lease, said = _lease(tmp_path, "one.0"), _lease(tmp_path, "other.0", ttl_seconds=1e9), list[str]()
    assert holder.try_acquire()

    def on_wait(sentence: str) -> None:
        said.append(sentence)
        clock.now += 50.0
        # Getting again to where it was is no progress.
        holder._beat([1, 2, 3, 4, 1, 4, 1][len(said) - 1])

    assert wait_for_turn(lease, lambda: False, threading.Event(), 140.0, on_wait, 0.001) is Turn.PRIVATE
    assert [sentence.split()[6] for sentence in said] == ["0", "1", "2", "3", "4", "1", "4"]
    assert holder.is_mine()


def test_waiting_takes_over_from_a_dead_holder(tmp_path: Path) -> None:
    assert _lease(tmp_path, "dead.0").try_acquire()
    assert _wait(_lease(tmp_path, "other.0", ttl_seconds=TTL)) is Turn.MINE


def test_waiting_ends_when_stopped(tmp_path: Path) -> None:
    stop = threading.Event()
    assert _lease(tmp_path, "one.0").try_acquire()
    with pytest.raises(StoppedError):
        wait_for_turn(_lease(tmp_path, "other.0"), lambda: False, stop, 30.0, lambda _: stop.set(), 30.0)


@pytest.mark.parametrize("errno", [1, 5, 95])
def test_where_leases_do_not_work_each_process_fetches_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, errno: int
) -> None:
    def link(*_: object) -> None:
        raise OSError(errno, os.strerror(errno))

    monkeypatch.setattr(os, "link", link)
    lease = _lease(tmp_path)
    assert _wait(lease) is Turn.PRIVATE
    assert not lease.is_mine()
    assert f"leases do not work in {tmp_path}" in caplog.text
    assert _names(tmp_path) == []


def test_where_the_folder_cannot_be_made_each_process_fetches_for_itself(tmp_path: Path) -> None:
    (tmp_path / "leases").write_text("a file")
    lease = _lease(tmp_path / "leases")
    assert _wait(lease) is Turn.PRIVATE
    assert lease.holder() is None
    lease.release()


def test_a_volume_that_fails_while_the_lease_is_held_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lease = _lease(tmp_path)
    assert lease.try_acquire()

    def fail(_: object) -> list[str]:
        raise OSError(5, "Input/output error")

    with lease.held(lambda: 0):
        monkeypatch.setattr(os, "listdir", fail)
        _wait_for(lambda: "cannot be renewed now" in caplog.text, "the notice")
        assert not lease.is_mine()
        assert lease.holder() is None
        monkeypatch.undo()
        assert lease.is_mine(), "the volume is back, nobody has taken the lease"
