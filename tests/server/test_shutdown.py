"""SIGTERM: not ready at once, what is under way finishes, what comes later goes elsewhere, and the server ends with 0."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from support.gguf_files import write_llama
from support.live_server import wait_for
from support.serving import RunningServer, running_server

# Some seconds of work.
BODY = {"model": "m", "prompt": "x", "temperature": 0, "max_tokens": 6000, "stream": True}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    write_llama(folder / "m.gguf", context_length=8192)
    return folder


@contextmanager
def stopping_server(models: Path, log_path: Path, **environ: str) -> Iterator[tuple[RunningServer, Iterator[str]]]:
    """Yields a server that was told to stop, and the lines of a stream that is under way."""
    with running_server(models, log_path, 0, NUM_THREADS="1", **environ) as server:
        server.wait_until("/readyz", 200)
        with httpx.stream("POST", f"{server.url}/v1/completions", json=BODY, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            yield server, lines
        assert server.process.wait(30) == 0


def test_a_server_that_stops_is_not_ready_and_lets_a_stream_finish(models: Path, tmp_path: Path) -> None:
    with stopping_server(models, tmp_path / "log") as (server, lines):
        wait_for(server, lambda: server.get("/readyz").status_code == 503)
        assert server.get("/readyz").json()["message"] == "The server is shutting down."
        assert server.get("/livez").status_code == 200
        rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in rest[-2]


def test_a_request_that_comes_while_the_server_stops_is_a_503_that_ends_the_connection(models: Path, tmp_path: Path) -> None:
    with stopping_server(models, tmp_path / "log") as (server, lines):
        with httpx.Client(base_url=server.url, timeout=60) as client:
            # Over a connection that was there before, and is kept.
            wait_for(server, lambda: client.get("/readyz").status_code == 503)
            for path in ("/v1/completions", "/v1/chat/completions"):
                answer = client.post(path, json={"model": "m", "prompt": "x", "max_tokens": 1})
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "shutting_down")
                assert answer.headers["connection"] == "close"
                assert int(answer.headers["retry-after"]) > 0
        assert [line for line in lines if line][-1] == "data: [DONE]"


def test_a_stream_that_does_not_finish_is_cut_after_the_grace(models: Path, tmp_path: Path) -> None:
    with stopping_server(models, tmp_path / "log", GRACE_SECONDS="0") as (server, lines):
        assert server.process.wait(30) == 0
        with pytest.raises(httpx.RemoteProtocolError):
            for _ in lines:
                pass


def test_an_idle_server_stops_at_once_even_if_a_client_keeps_its_connection(models: Path, tmp_path: Path) -> None:
    with running_server(models, tmp_path / "log") as server:
        server.wait_until("/readyz", 200)
        with httpx.Client(base_url=server.url) as client:
            assert client.get("/livez").status_code == 200
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(30) == 0
