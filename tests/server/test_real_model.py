"""What needs a model that makes sense: the real one, beside everything else that may lie in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.gguf_files import write_llama
from support.serving import RunningServer, running_server

pytestmark = pytest.mark.real_model

QUESTION = "The capital city of France is called"


@pytest.fixture(scope="module")
def server(embedded_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("mixed")
    os.symlink(embedded_model_path, folder / embedded_model_path.name)
    small = write_llama(folder / "small.F32.gguf")
    with embedded_model_path.open("rb") as whole:
        (folder / "truncated.Q4_K_M.gguf").write_bytes(whole.read(50_000_000))
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    (folder / "next-Q4_K_M.gguf.part").write_bytes(small.read_bytes()[:1000])
    (folder / "mmproj-model-f16.gguf").write_bytes(small.read_bytes())
    with running_server(folder, tmp_path_factory.mktemp("log") / "log", DEFAULT_MODEL="gemma-3-270m") as server:
        server.wait_until("/readyz", 200)
        yield server


def test_mixed_folder_serves_two_reports_one_and_ignores_the_rest(server: RunningServer) -> None:
    ready = server.get("/readyz").json()
    assert {name: model["state"] for name, model in ready["models"].items()} == {
        "gemma-3-270m": "ready",
        "small": "ready",
        "truncated": "failed",
    }
    lines = server.log().splitlines()
    for file, word in (
        ("truncated.Q4_K_M.gguf", "is not served"),
        ("pytorch_model.bin", "is ignored"),
        ("next-Q4_K_M.gguf.part", "is ignored"),
        ("mmproj-model-f16.gguf", "is ignored"),
    ):
        assert len([line for line in lines if file in line and word in line]) == 1


def test_completion_knows_the_capital_of_france(server: RunningServer) -> None:
    answer = server.post("/v1/completions", {"model": "gemma-3-270m", "prompt": QUESTION, "temperature": 0, "max_tokens": 5})
    assert "Paris" in answer.json()["choices"][0]["text"]


def test_completion_of_a_near_tie_is_llama_cpps_own(server: RunningServer) -> None:
    """llama.cpp gives this with this file from F32 weights too (docs/decisions/0004-exact-f32.md)."""
    body = {"model": "gemma-3-270m", "prompt": "The capital of France is", "temperature": 0, "max_tokens": 3}
    assert server.post("/v1/completions", body).json()["choices"][0]["text"] == " the capital of"


def test_chat_without_a_template_answers_and_stops(server: RunningServer) -> None:
    answer = server.openai().chat.completions.create(
        model="gemma-3-270m",
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        temperature=0,
        max_tokens=60,
    )
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"


def test_sixteen_streams_at_once_finish_with_their_own_text(server: RunningServer) -> None:
    words = ["apple", "river", "stone", "cloud", "tiger", "paper", "green", "music"]
    words += ["bread", "light", "horse", "water", "seven", "night", "glass", "tower"]

    def stream(word: str) -> str:
        chunks = server.openai().completions.create(
            model="gemma-3-270m", prompt=" ".join([word] * 12), temperature=0, max_tokens=24, stream=True
        )
        return "".join(chunk.choices[0].text for chunk in chunks)

    with ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(stream, words))
    for word, text in zip(words, texts, strict=True):
        assert text.count(word) > 3, (word, text)
        assert not [other for other in words if other != word and text.count(other) > 1], (word, text)
