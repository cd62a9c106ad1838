"""Processes that outlive who starts them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import services
from cluster.commands import wait_until
from cluster.services import Service


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Service]:
    service = Service("sleeper", ("sleep", "600"), tmp_path)
    yield service
    services.stop_recorded([service.pid_path])


def test_start_is_idempotent_and_leads_a_session_of_its_own(sleeper: Service) -> None:
    assert sleeper.start()
    pid = sleeper.pid()
    assert pid is not None
    assert os.getsid(pid) == pid != os.getsid(0)
    assert not sleeper.start()
    assert sleeper.pid() == pid


def test_stopped_service_can_start_again(sleeper: Service) -> None:
    sleeper.start()
    first = sleeper.pid()
    services.stop_recorded([sleeper.pid_path])
    assert sleeper.pid() is None
    assert sleeper.start()
    assert sleeper.pid() not in (None, first)


def test_what_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    service = Service("stubborn", ("sh", "-c", f"trap '' TERM; touch {ready}; while :; do sleep 1; done"), tmp_path)
    service.start()
    assert wait_until(ready.exists, 10)
    services.stop_recorded([service.pid_path], grace_seconds=0.2)
    assert service.pid() is None


def test_another_process_with_the_recorded_pid_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.pid"
    path.write_text(f"{os.getpid()} 1 some-other-boot\n")
    assert services.recorded_pid(path) is None
    services.stop_recorded([path])
    assert not path.exists()


def test_log_says_why_it_ended(tmp_path: Path) -> None:
    service = Service("brief", ("sh", "-c", "echo no such option; exit 2"), tmp_path)
    service.start()
    assert wait_until(lambda: service.pid() is None, 10)
    assert "no such option" in service.log_tail()


def test_killed_process_counts_as_dead(sleeper: Service) -> None:
    sleeper.start()
    pid = sleeper.pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: sleeper.pid() is None, 10)
