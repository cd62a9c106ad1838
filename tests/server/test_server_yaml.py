"""The real server with a server.yaml: what it serves, how, and when it is ready."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.gguf_files import write_llama
from support.serving import running_server

SET = "0123456789ab"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two models of the declared set, one of an old one, one of a person."""
    folder = tmp_path / "models"
    (folder / ".nlocalmodels" / "sets").mkdir(parents=True)
    for seed, file in enumerate(("first.Q8_0.gguf", "second.gguf", "old.gguf", "mine.gguf")):
        write_llama(folder / file, seed=seed)
    document = {"version": 1, "set": "old", "models": [{"id": "old", "file": "old.gguf"}]}
    (folder / ".nlocalmodels" / "sets" / "old.json").write_text(json.dumps(document))
    return folder


def write_yaml(tmp_path: Path, **document: Any) -> str:
    path = tmp_path / "server.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


def test_declared_models_are_served_under_their_ids_with_their_own_options(folder: Path, tmp_path: Path) -> None:
    models = [
        {"id": "chat", "file": "first.Q8_0.gguf", "contextTokens": 128, "numSlots": 2, "numThreads": 1},
        {"id": "second", "file": "second.gguf"},
    ]
    config = write_yaml(tmp_path, contextTokens=256, numSlots=4, numThreads=2, models=models)
    with running_server(folder, tmp_path / "log", DEFAULT_MODEL="chat", SERVER_CONFIG=config) as server:
        ready = server.wait_until("/readyz", 200).json()
        assert set(ready["models"]) == {"chat", "second", "mine"}
        assert ready["problems"] == {}
        served = {model["id"]: model for model in server.get("/v1/models").json()["data"]}
        options = {name: [served[name][key] for key in ("contextTokens", "numSlots", "numThreads")] for name in served}
        assert options == {"chat": [128, 2, 1], "second": [256, 4, 2], "mine": [256, 4, 2]}
        assert f"settings from {config}" in server.log()
        assert "old.gguf is ignored: belongs to another set" in server.log()
        answer = server.post("/v1/completions", {"model": "chat", "prompt": "a" * 200})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_a_missing_declared_file_is_named_and_the_rest_is_ready(folder: Path, tmp_path: Path) -> None:
    models = [{"id": "chat", "file": "first.Q8_0.gguf"}, {"id": "x", "file": "gone.gguf"}]
    config = write_yaml(tmp_path, models=models)
    with running_server(folder, tmp_path / "log", DEFAULT_MODEL="chat", SERVER_CONFIG=config) as server:
        ready = server.wait_until("/readyz", 200).json()
        assert ready["problems"] == {"gone.gguf": "declared as 'x', but it is not in MODEL_PATH"}
        assert server.post("/v1/completions", {"model": "x", "prompt": "a"}).status_code == 404


def test_a_missing_declared_file_counts_when_every_model_must_serve(folder: Path, tmp_path: Path) -> None:
    models = [{"id": "chat", "file": "first.Q8_0.gguf"}, {"id": "x", "file": "gone.gguf"}]
    config = write_yaml(tmp_path, readyWhen="all", serveUndeclared=False, models=models)
    with running_server(folder, tmp_path / "log", DEFAULT_MODEL="chat", SERVER_CONFIG=config) as server:
        while "Loading" in (message := server.get("/readyz").json()["message"]):
            pass
        assert "READY_WHEN is all" in message
        assert "gone.gguf" in message
        assert [model["id"] for model in server.get("/v1/models").json()["data"]] == ["chat"]


def test_a_default_model_whose_file_is_missing_says_so(folder: Path, tmp_path: Path) -> None:
    config = write_yaml(tmp_path, models=[{"id": "x", "file": "gone.gguf"}])
    with running_server(folder, tmp_path / "log", DEFAULT_MODEL="x", SERVER_CONFIG=config) as server:
        server.wait_until("/v1/models/mine", 200)
        answer = server.get("/readyz")
        assert answer.status_code == 503
        assert "gone.gguf: declared as 'x', but it is not in MODEL_PATH." in answer.json()["message"]


def test_nothing_declared_and_nothing_of_a_person_is_not_ready(folder: Path, tmp_path: Path) -> None:
    config = write_yaml(tmp_path, serveUndeclared=False, models=[])
    with running_server(folder, tmp_path / "log", SERVER_CONFIG=config) as server:
        answer = server.get("/readyz")
        assert answer.status_code == 503
        assert "mine.gguf: not declared, and serveUndeclared is false" in answer.json()["message"]
        assert "old.gguf: belongs to another set" in answer.json()["message"]


@pytest.mark.parametrize(
    ("sizes", "problem"),
    [
        ({}, "it lacks .nlocalmodels/sets/0123456789ab.json, and it has the set old"),
        ({"first.Q8_0.gguf": 5}, "it lacks first.Q8_0.gguf: it has 467680 bytes, by the set 5"),
        ({"first.Q8_0.gguf": None, "third.gguf": 5}, "it lacks third.gguf"),
    ],
    ids=["another set", "another file", "a file less"],
)
def test_server_of_another_set_than_the_declared_one_does_not_start(
    folder: Path, tmp_path: Path, sizes: dict[str, int | None], problem: str
) -> None:
    """As with a baked image and the values of another one."""
    files = [{"file": file, "sizeBytes": size or (folder / file).stat().st_size} for file, size in sizes.items()]
    if files:
        manifest = {"version": 1, "set": SET, "models": [{"id": file["file"], **file} for file in files]}
        (folder / ".nlocalmodels" / "sets" / f"{SET}.json").write_text(json.dumps(manifest))
    models = [{"id": "chat", "file": "first.Q8_0.gguf"}]
    environ = {**os.environ, "MODEL_PATH": str(folder), "SERVER_CONFIG": write_yaml(tmp_path, set=SET, models=models)}
    command = [sys.executable, "-m", "nlocalmodels_server"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"{folder} does not hold the declared set {SET}: {problem}" in done.stderr


def test_server_of_the_declared_set_starts(folder: Path, tmp_path: Path) -> None:
    file = {"file": "first.Q8_0.gguf", "sizeBytes": (folder / "first.Q8_0.gguf").stat().st_size}
    manifest = {"version": 1, "set": SET, "models": [{"id": "chat", **file}]}
    (folder / ".nlocalmodels" / "sets" / f"{SET}.json").write_text(json.dumps(manifest))
    config = write_yaml(tmp_path, set=SET, models=[{"id": "chat", "file": "first.Q8_0.gguf"}])
    with running_server(folder, tmp_path / "log", SERVER_CONFIG=config, DEFAULT_MODEL="chat") as server:
        assert server.wait_until("/readyz", 200).json()["set"] == SET
