"""A host that asks to be left alone is left alone by everybody."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from nlocalmodels_downloader import resolve
from nlocalmodels_downloader.errors import StoppedError
from nlocalmodels_downloader.pauses import Pauses
from support.downloads import MIB, Downloads, wait_for
from support.model_source import Behaviour, ModelSource, Request


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def _is_paused(pauses: Pauses, host: str) -> bool:
    asked: list[bool] = []

    def is_over() -> bool:
        asked.append(True)
        return True

    pauses.wait(host, is_over)
    return bool(asked)


def test_a_pause_is_of_one_host_and_ends(clock: Clock) -> None:
    pauses = Pauses(lambda: 60.0, clock)
    assert not _is_paused(pauses, "a")
    pauses.asked_for("a", 5)
    assert _is_paused(pauses, "a")
    assert not _is_paused(pauses, "b")
    clock.now += 4.9
    assert _is_paused(pauses, "a")
    clock.now += 0.2
    assert not _is_paused(pauses, "a")


def test_the_longest_wish_counts_up_to_a_bound(clock: Clock) -> None:
    pauses = Pauses(lambda: 60.0, clock)
    pauses.asked_for("a", 86400)
    pauses.asked_for("a", 1)
    clock.now += 59
    assert _is_paused(pauses, "a")
    clock.now += 2
    assert not _is_paused(pauses, "a")


def test_waiting_ends_when_the_pause_does(clock: Clock) -> None:
    pauses = Pauses(lambda: 60.0, clock)
    pauses.asked_for("a", 50)
    thread = threading.Thread(target=pauses.wait, args=("a", lambda: False))
    thread.start()
    wait_for(lambda: pauses.num_waiting == 1, "a waiter")
    clock.now += 51
    thread.join(20)
    assert not thread.is_alive()
    assert pauses.num_waiting == 0


@pytest.fixture
def made_pauses(monkeypatch: pytest.MonkeyPatch) -> list[Pauses]:
    """What the clients made of them."""
    made: list[Pauses] = []

    class Seen(Pauses):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]
            made.append(self)

    monkeypatch.setattr(resolve, "Pauses", Seen)
    monkeypatch.setattr("nlocalmodels_downloader.retry.MAX_RETRY_AFTER_SECONDS", 3600.0)
    return made


@pytest.mark.parametrize("status", [429, 503])
def test_what_a_host_tells_one_connection_holds_for_those_of_other_models(
    downloads: Downloads, other_source: ModelSource, made_pauses: list[Pauses], status: int
) -> None:
    downloads.settings = replace(downloads.settings, num_connections=1)
    data = {name: downloads.serve(name, 9 * MIB, seed) for seed, name in enumerate("ab")}
    under_way, told = threading.Event(), threading.Event()

    def behave(request: Request) -> Behaviour:
        if request.range == (0, 1):
            return Behaviour()
        if request.path == "/a.gguf":
            under_way.wait(20)
            return Behaviour(status=status, headers={"Retry-After": "3000"})
        under_way.set()
        told.wait(20)
        return Behaviour()

    downloads.source.behave = behave

    def bodies() -> list[str]:
        return [request.path for request in downloads.source.requests if request.range != (0, 1)]

    models = [downloads.model(data[name], name) for name in data]
    ended: list[BaseException] = []

    def sync() -> None:
        try:
            downloads.sync(*models)
        except StoppedError as error:
            ended.append(error)

    thread = threading.Thread(target=sync)
    thread.start()
    try:
        [pauses] = _wait_for_pause(made_pauses, downloads.source)
        told.set()
        wait_for(lambda: pauses.num_waiting == 1 or len(bodies()) > 2, "b to wait, too")
    finally:
        downloads.stop.set()
        thread.join(20)
    assert len(ended) == 1
    assert sorted(bodies()) == ["/a.gguf", "/b.gguf"], "a host that asked to be left alone was asked again"


def _wait_for_pause(made_pauses: list[Pauses], source: ModelSource) -> list[Pauses]:
    host = ("http", "127.0.0.1", int(source.url.rpartition(":")[2]))
    wait_for(lambda: any(_is_paused(pauses, host) for pauses in made_pauses), "the host's wish to be heard")  # type: ignore[arg-type]
    return made_pauses
