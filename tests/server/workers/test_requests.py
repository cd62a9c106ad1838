"""How many requests there may be, when to come again, and how long one may take."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

from nlocalmodels_server.workers.generation import Delta, Generation, GenerationError
from nlocalmodels_server.workers.requests import Requests
from nlocalmodels_server.workers.throughput import Throughput
from support.gguf_files import write_llama
from support.serving import RunningServer, running_server


class NoWorker:
    def cancel(self, generation: Generation) -> None:
        raise AssertionError(generation)


def in_loop(test: Callable[[], None]) -> None:
    async def run() -> None:
        test()

    asyncio.run(run())


def add(
    requests: Requests, request_id: int, num_prompt_tokens: int, max_new_tokens: int | None
) -> list[Delta | GenerationError]:
    results: list[Delta | GenerationError] = []
    requests.add(Generation(NoWorker(), request_id, results.append, max_new_tokens))
    requests.accept(request_id, num_prompt_tokens)
    return results


def test_retry_after_is_what_is_left_to_compute_at_the_measured_rate() -> None:
    def test() -> None:
        requests = Requests()
        add(requests, 1, 100, 100)
        assert requests.retry_after_seconds() == 5  # nothing was measured yet
        requests.receive([[1, "a", None, 0, 0, 0, None]] * 99)
        requests.receive([[1, "a", "length", 100, 100, 0, None]])
        requests.pass_time(1.0)  # of no account: there is no request
        add(requests, 2, 300, 1000)
        requests.pass_time(10.0)
        # 200 tokens in 10 s, faded a little; 300 of the prompt and probably 100 as before: about 20 s.
        assert 20 <= requests.retry_after_seconds() <= 23
        requests.receive([[2, "a", None, 0, 0, 0, None]])
        # 501 tokens by now, and 99 to go.
        assert requests.retry_after_seconds() == 3
        for request_id in range(3, 500):
            add(requests, request_id, 1000, None)
        assert requests.retry_after_seconds() == 300

    in_loop(test)


def test_throughput_forgets_what_was_long_ago() -> None:
    throughput = Throughput()
    assert throughput.seconds_for(1) is None
    throughput.count(10_000)
    throughput.pass_time(10)
    throughput.pass_time(1200)
    throughput.count(1000)
    throughput.pass_time(1)
    seconds = throughput.seconds_for(100)
    assert seconds is not None
    assert seconds > 5


def test_overdue_requests_fail_and_the_others_go_on() -> None:
    def test() -> None:
        now = [0.0]
        requests = Requests(lambda: now[0])
        old = add(requests, 1, 1, 10)
        now[0] = 50.0
        new = add(requests, 2, 1, 10)
        now[0] = 101.0
        assert requests.end_overdue(100.0) == [1]
        assert isinstance(old[0], GenerationError)
        assert (old[0].status, old[0].code, old[0].should_retry) == (504, "request_timeout", False)
        assert new == []
        assert len(requests) == 1

    in_loop(test)


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    write_llama(folder / "a.gguf", context_length=65536)
    return folder


LONG = {"prompt": "x", "temperature": 0, "max_tokens": 60000}


def long_server(model_path: Path, tmp_path: Path, **environ: str) -> AbstractContextManager[RunningServer]:
    """Returns a server with one slot, for requests that take long."""
    return running_server(model_path, tmp_path / "log", 0, CONTEXT_TOKENS="65536", NUM_SLOTS="1", **environ)


def test_queue_that_is_full_says_when_to_come_again(model_path: Path, tmp_path: Path) -> None:
    with long_server(model_path, tmp_path, MAX_REQUESTS="1") as server:
        server.wait_until("/readyz", 200)
        with httpx.stream("POST", f"{server.url}/v1/completions", json={**LONG, "stream": True}, timeout=60) as answer:
            lines = answer.iter_lines()
            for _ in range(200):
                next(lines)
            refused = server.post("/v1/completions", LONG)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
            assert "has 1 requests under way" in refused.text
            assert 1 <= int(refused.headers["retry-after"]) <= 300
        assert is_free(server)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_request_that_takes_too_long_ends_with_an_error(model_path: Path, tmp_path: Path, path: str) -> None:
    prompt = {"messages": [{"role": "user", "content": "x"}]} if "chat" in path else {"prompt": "x"}
    body = {"temperature": 0, "max_tokens": 60000, **prompt}
    with long_server(model_path, tmp_path, REQUEST_SECONDS="1") as server:
        server.wait_until("/readyz", 200)
        answer = server.post(path, body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "request_timeout")
        assert answer.headers["x-should-retry"] == "false"
        with httpx.stream("POST", server.url + path, json={**body, "stream": True}, timeout=60) as streamed:
            last = [line for line in streamed.iter_lines() if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "request_timeout"
        assert is_free(server)


@pytest.mark.parametrize("stream", [True, False])
def test_disconnected_client_leaves_the_engine_free(model_path: Path, tmp_path: Path, stream: bool) -> None:
    """With one slot, the next request gets it only when the one before has been cancelled in the engine."""
    with long_server(model_path, tmp_path) as server:
        server.wait_until("/readyz", 200)
        if stream:
            with httpx.stream("POST", f"{server.url}/v1/completions", json={**LONG, "stream": True}, timeout=60) as answer:
                next(answer.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{server.url}/v1/completions", json=LONG, timeout=1)
        assert is_free(server)


def is_free(server: RunningServer) -> bool:
    """Whether a short request is served, long before a long one could have ended."""
    done = threading.Event()

    def ask() -> None:
        if server.post("/v1/completions", {"prompt": "x", "max_tokens": 1}).status_code == 200:
            done.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return done.wait(20)
