from __future__ import annotations

import shutil
from pathlib import Path

from support.gguf_files import write_llama
from support.serving import RunningServer, running_server


def test_health_is_good_when_models_serve(tiny_server: RunningServer) -> None:
    assert tiny_server.get("/livez").status_code == 200
    assert tiny_server.get("/startupz").json() == {"status": "started", "loading": []}
    assert tiny_server.get("/healthz").json() == {"status": "ok"}
    ready = tiny_server.get("/readyz").json()
    assert ready["status"] == "ready"
    assert ready["default"] == "tiny"
    assert {name: model["state"] for name, model in ready["models"].items()} == {"tiny": "ready", "other": "ready"}


def test_no_model_is_alive_but_not_ready_and_says_what_was_looked_for(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(b"x")
    with running_server(folder, tmp_path / "log") as server:
        answer = server.get("/readyz")
        assert answer.status_code == 503
        assert f"looked for *.gguf files in {folder}, set by MODEL_PATH" in answer.json()["message"]
        assert "weights.safetensors" in answer.json()["message"]
        assert server.get("/livez").status_code == 200
        assert server.get("/healthz").status_code == 503
        assert server.get("/v1/models").json()["data"] == []
        assert server.post("/v1/completions", {"prompt": "a"}).status_code == 404
        assert f"no model: looked for *.gguf files in {folder}" in server.log()


def test_default_model_that_is_not_there_is_not_ready(tmp_path: Path) -> None:
    write_llama(tmp_path / "m.gguf")
    with running_server(tmp_path, tmp_path / "log", DEFAULT_MODEL="llama-2-7b-chat") as server:
        server.wait_until("/v1/models/m", 200)
        message = server.get("/readyz").json()["message"]
        assert "DEFAULT_MODEL 'llama-2-7b-chat' is not among the models" in message
        assert "There are: m." in message


def test_broken_files_are_named_and_the_rest_serve(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    good = write_llama(folder / "good.Q8_0.gguf")
    (folder / "cut.Q8_0.gguf").write_bytes(good.read_bytes()[:300_000])
    (folder / "page.gguf").write_bytes(b"<html>please log in</html>")
    (folder / "no-shard-00001-of-00002.gguf").write_bytes(good.read_bytes())
    shutil.copy(good, folder / "mmproj-model.gguf")
    with running_server(folder, tmp_path / "log", DEFAULT_MODEL="good") as server:
        ready = server.wait_until("/readyz", 200).json()
        assert {name: model["state"] for name, model in ready["models"].items()} == {"good": "ready", "cut": "failed"}
        assert "not within the file bounds" in ready["models"]["cut"]["reason"]
        assert set(ready["problems"]) == {"page.gguf", "no-shard-00001-of-00002.gguf"}
        answer = server.post("/v1/completions", {"model": "cut", "prompt": "a"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_failed")
        for name in ("cut.Q8_0.gguf", "page.gguf", "no-shard-00001-of-00002.gguf", "mmproj-model.gguf"):
            assert len([line for line in server.log().splitlines() if name in line and "served as" not in line]) == 1


def test_start_lasts_until_every_model_has_loaded_or_failed(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    # Two load at once, so the last of six are still waiting when the server first answers.
    for number in range(6):
        good = write_llama(folder / f"m{number}.gguf")
    (folder / "m5.gguf").write_bytes(good.read_bytes()[:300_000])
    with running_server(folder, tmp_path / "log") as server:
        first = server.get("/startupz")
        assert (first.status_code, first.json()["status"]) == (503, "starting")
        assert "m4" in first.json()["loading"]
        server.wait_until("/startupz", 200)
        assert server.get("/readyz").json()["models"]["m5"]["state"] == "failed"


def test_ready_when_all_waits_for_every_model(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    good = write_llama(folder / "good.gguf")
    (folder / "cut.gguf").write_bytes(good.read_bytes()[:300_000])
    with running_server(folder, tmp_path / "log", DEFAULT_MODEL="good", READY_WHEN="all") as server:
        server.wait_until("/v1/models/good", 200)
        while "Loading" in (message := server.get("/readyz").json()["message"]):
            pass
        assert "READY_WHEN is all" in message
        assert "cut" in message
