"""What counts as hanging, and what becomes of a process that does."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import openai
import pytest

from nlocalmodels_server.workers.heartbeat import Activity, Heartbeat
from support.gguf_files import write_llama
from support.serving import running_server

MIB = 1024**2


def test_silence_counts_only_while_there_is_something_to_do() -> None:
    heartbeat = Heartbeat(10)
    heartbeat.pass_time(100)
    assert heartbeat.find_hang() is None
    heartbeat.expect(Activity.COMPUTING, True)
    heartbeat.pass_time(9)
    heartbeat.expect(Activity.COMPUTING, True)
    assert heartbeat.find_hang() is None
    heartbeat.pass_time(1)
    assert heartbeat.find_hang() == "gave no sign of life for 10 s while computing"
    assert heartbeat.find_hang(times=2) is None
    heartbeat.hear(Activity.COMPUTING)
    assert heartbeat.find_hang() is None


def test_one_activity_does_not_speak_for_another() -> None:
    heartbeat = Heartbeat(10)
    heartbeat.expect(Activity.COMPUTING, True)
    heartbeat.expect(Activity.TOKENIZING, True)
    heartbeat.pass_time(10)
    heartbeat.hear(Activity.COMPUTING)
    assert heartbeat.find_hang() == "gave no sign of life for 10 s while taking requests in"
    heartbeat.expect(Activity.TOKENIZING, False)
    assert heartbeat.find_hang() is None


def test_loading_has_a_bound_by_the_size_of_the_file() -> None:
    heartbeat = Heartbeat(10, file_bytes=10_000 * MIB)
    heartbeat.expect(Activity.LOADING, True)
    heartbeat.pass_time(1599)
    assert heartbeat.find_hang() is None
    heartbeat.pass_time(1)
    assert heartbeat.find_hang() == "gave no sign of life for 1600 s while loading"


def test_process_that_hangs_is_ended_and_started_again_while_others_serve_on(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    write_llama(folder / "victim.gguf", seed=1, context_length=16384)
    write_llama(folder / "bystander.gguf", seed=2, context_length=16384)
    with running_server(folder, tmp_path / "log", DEFAULT_MODEL="bystander", HANG_SECONDS="2") as server:
        server.wait_until("/readyz", 200)
        client, texts, ended = server.openai(), list[str](), threading.Event()

        def stream_bystander() -> None:
            while not ended.is_set():
                with client.completions.create(model="bystander", prompt="x", max_tokens=8000, stream=True) as stream:
                    for chunk in stream:
                        texts.append(chunk.choices[0].text)
                        if ended.is_set():
                            break

        def wait_for_bystander() -> None:
            before, deadline = len(texts), time.monotonic() + 60
            while len(texts) < before + 100:
                assert time.monotonic() < deadline, server.log()
                time.sleep(0.01)

        thread = threading.Thread(target=stream_bystander)
        thread.start()
        try:
            wait_for_bystander()
            stream = client.completions.create(model="victim", prompt="x", temperature=0, max_tokens=8000, stream=True)
            next(stream)
            pid = server.worker_pid("victim")
            os.kill(pid, signal.SIGSTOP)
            with pytest.raises(openai.APIError, match="gave no sign of life for 2 s while computing and was ended"):
                for _ in stream:
                    pass
            wait_for_bystander()
            server.wait_for_state("victim", "ready")
            assert server.worker_pid("victim") != pid
            assert client.completions.create(model="victim", prompt="x", max_tokens=2).choices[0].finish_reason == "length"
            assert server.get("/livez").status_code == 200
        finally:
            ended.set()
            thread.join(60)
        assert "bystander: its process" not in server.log()


def test_idle_process_that_was_stopped_hangs_only_when_it_is_asked(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    write_llama(folder / "a.gguf")
    with running_server(folder, tmp_path / "log", HANG_SECONDS="1") as server:
        server.wait_until("/readyz", 200)
        os.kill(server.worker_pid("a"), signal.SIGSTOP)
        answer = server.post("/v1/completions", {"prompt": "x", "max_tokens": 1})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "worker_ended")
        assert "gave no sign of life for 1 s while taking requests in" in answer.text
        assert int(answer.headers["retry-after"]) > 0
        server.wait_until("/readyz", 200)
