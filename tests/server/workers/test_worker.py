"""A worker that dies: its requests fail cleanly, others notice nothing, and it comes back."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest

from nlocalmodels_server.workers.exits import describe_exit
from support.gguf_files import write_llama
from support.serving import running_server


@pytest.fixture
def two_models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    write_llama(folder / "victim.gguf", seed=1, context_length=16384)
    write_llama(folder / "bystander.gguf", seed=2, context_length=16384)
    return folder


def test_killed_worker_fails_its_requests_and_is_started_again(two_models: Path, tmp_path: Path) -> None:
    with running_server(two_models, tmp_path / "log", DEFAULT_MODEL="victim") as server:
        server.wait_until("/readyz", 200)
        client = server.openai()
        bystander: list[str] = []
        started = threading.Event()

        def stream_bystander() -> None:
            for chunk in client.completions.create(model="bystander", prompt="x", temperature=0, max_tokens=3000, stream=True):
                bystander.append(chunk.choices[0].text)
                started.set()

        thread = threading.Thread(target=stream_bystander)
        thread.start()
        assert started.wait(30)
        stream = client.completions.create(model="victim", prompt="x", temperature=0, max_tokens=7000, stream=True)
        next(stream)
        os.kill(server.worker_pid("victim"), signal.SIGKILL)
        with pytest.raises(openai.APIError, match="was ended by SIGKILL"):
            for _ in stream:
                pass
        server.wait_for_state("victim", "ready")
        thread.join(60)
        assert len("".join(bystander)) == 3000
        assert client.completions.create(model="victim", prompt="x", max_tokens=2).choices[0].finish_reason == "length"
        assert server.get("/readyz").json()["models"]["victim"]["restarts"] == 1


def test_request_to_a_model_that_restarts_is_503_with_retry_after(two_models: Path, tmp_path: Path) -> None:
    with running_server(two_models, tmp_path / "log", DEFAULT_MODEL="bystander") as server:
        server.wait_until("/readyz", 200)
        os.kill(server.worker_pid("victim"), signal.SIGKILL)
        server.wait_for_state("victim", "waiting")
        answer = server.post("/v1/completions", {"model": "victim", "prompt": "a"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_ready")
        assert int(answer.headers["retry-after"]) > 0


def test_sigterm_lets_a_stream_finish_and_leaves_no_process(two_models: Path, tmp_path: Path) -> None:
    with running_server(two_models, tmp_path / "log", DEFAULT_MODEL="victim") as server:
        server.wait_until("/readyz", 200)
        pids = [server.worker_pid("victim"), server.worker_pid("bystander")]
        body = {"model": "victim", "prompt": "x", "temperature": 0, "max_tokens": 3000, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert server.process.wait(30) == 0
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_workers_end_when_the_server_is_killed(two_models: Path, tmp_path: Path) -> None:
    with running_server(two_models, tmp_path / "log", exit_code=-signal.SIGKILL) as server:
        server.wait_until("/readyz", 200)
        pids = [server.worker_pid("victim"), server.worker_pid("bystander")]
        server.process.kill()
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (70, "ended with exit code 70"),
        (-9, "was ended by SIGKILL (out of memory?)"),
        (-6, "was ended by SIGABRT"),
        (-40, "was ended by signal 40"),
    ],
)
def test_describe_exit_names_signals(code: int, expected: str) -> None:
    assert describe_exit(code) == expected


def test_crash_of_another_model_does_not_take_the_server_out_of_service(two_models: Path, tmp_path: Path) -> None:
    with running_server(two_models, tmp_path / "log", DEFAULT_MODEL="bystander") as server:
        server.wait_until("/readyz", 200)
        os.kill(server.worker_pid("victim"), signal.SIGKILL)
        server.wait_for_state("victim", "waiting")
        assert server.get("/readyz").status_code == 200


def test_ready_model_tells_its_choices_with_their_reasons_in_one_line(two_models: Path, tmp_path: Path) -> None:
    config = tmp_path / "server.yaml"
    own = "numThreads: 1, numPrefillThreads: 2, numSlots: 3, kvType: f16, flashAttention: true, contextTokens: 512"
    config.write_text(f"models: [{{id: victim, file: victim.gguf, {own}}}, {{id: bystander, file: bystander.gguf}}]")
    with running_server(two_models, tmp_path / "log", SERVER_CONFIG=str(config), DEFAULT_MODEL="victim") as server:
        server.wait_until("/readyz", 200)
        told, chosen = (
            next(line for line in server.log().splitlines() if f"{name}: ready" in line) for name in ("victim", "bystander")
        )
        facts = server.get("/v1/models/victim").json()
        assert server.post("/v1/completions", {"prompt": "x", "max_tokens": 3}).status_code == 200
    for part in (
        "contextTokens 512 (as told)",
        "numThreads 1 (as told)",
        "numPrefillThreads 2 (as told)",
        "kvType f16 (as told)",
    ):
        assert part in told
    assert {name: facts[name] for name in ("numThreads", "numPrefillThreads", "numSlots", "kvType", "flashAttention")} == {
        "numThreads": 1,
        "numPrefillThreads": 2,
        "numSlots": 3,
        "kvType": "f16",
        "flashAttention": "on",
    }
    for part in ("kvType f32 (exact, since all weights are F32)", "flashAttention off (exact results)", "numPrefillThreads"):
        assert part in chosen
