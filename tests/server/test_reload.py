"""The real server while its models change: nothing that is under way or still wanted notices."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.gguf_files import write_llama
from support.live_server import LiveFolder, Load, live_server, states, text_of, wait_for
from support.serving import RunningServer


@pytest.fixture
def folder(tmp_path: Path) -> LiveFolder:
    """Two declared models, `a` and `b`, which a set names, so that they are no person's."""
    folder = LiveFolder(tmp_path)
    folder.models.mkdir()
    for seed, name in enumerate(("a", "b")):
        write_llama(folder.models / f"{name}.gguf", seed=seed, context_length=16384)
    folder.publish_set("a", "b")
    folder.tell("a", "b")
    return folder


def swap_file(folder: LiveFolder, name: str, seed: int) -> None:
    """Publishes another file under a name, as the downloader does."""
    written = write_llama(folder.root / "new.gguf", seed=seed)
    os.replace(written, folder.models / f"{name}.gguf")


def detail(server: RunningServer) -> dict[str, Any]:
    answer = server.get("/readyz")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def is_served(server: RunningServer, **wanted: str) -> bool:
    return states(server) == wanted


def test_an_added_model_is_served_and_a_kept_one_keeps_its_process(folder: LiveFolder) -> None:
    with live_server(folder, "a") as server:
        pid = server.worker_pid("a")
        write_llama(folder.models / "c.gguf", seed=3)
        folder.tell("a", "b", "c")
        wait_for(server, lambda: is_served(server, a="ready", b="ready", c="ready"))
        assert detail(server)["status"] == "ready"
        assert text_of(server, "c")
        assert server.worker_pid("a") == pid
        os.kill(pid, 0)
        assert server.log().count("a: ready") == server.log().count("b: ready") == 1
        for line in ("applied: added c; kept a, b", "model-added: 'c'", "model-kept: 'a'"):
            assert line in server.log()


def test_a_removed_model_is_unknown_at_once_and_its_stream_finishes(folder: LiveFolder) -> None:
    with live_server(folder, "a") as server:
        pid = server.worker_pid("b")
        body = {"model": "b", "prompt": "x", "temperature": 0, "max_tokens": 6000, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            folder.tell("a")
            wait_for(server, lambda: is_served(server, a="ready"))
            assert server.post("/v1/completions", {"model": "b", "prompt": "x"}).status_code == 404
            assert detail(server)["draining"] == [{"id": "b", "requests": 1}]
            chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"])
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"
        wait_for(server, lambda: not Path(f"/proc/{pid}").exists())
        assert "model-removed: 'b': 1 requests under way, 60 s to finish" in server.log()


def test_a_removed_model_that_does_not_finish_is_ended_after_the_grace(folder: LiveFolder) -> None:
    with live_server(folder, "a") as server:
        body = {"model": "b", "prompt": "x", "temperature": 0, "max_tokens": 16000, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            folder.tell("a", graceSeconds=0)
            rest = [line for line in lines if line]
        assert "'b' is served no longer, and the 0 s to finish are over" in rest[-1]


def test_a_changed_file_is_swapped_under_load_without_a_failed_request(folder: LiveFolder) -> None:
    with live_server(folder, "a") as server:
        before, pid, other_pid = text_of(server, "a"), server.worker_pid("a"), server.worker_pid("b")
        with Load(server, "a") as load:
            wait_for(server, lambda: len(load.texts) >= 8)
            swap_file(folder, "a", seed=7)
            wait_for(server, lambda: load.texts[-1] != before)
            num_texts = len(load.texts)
            wait_for(server, lambda: len(load.texts) >= num_texts + 8)
        assert load.failures == []
        after = text_of(server, "a")
        assert after != before
        assert set(load.texts) == {before, after}
        # Each of the four clients may have got its last answer from the old process, if that was slow.
        assert after in load.texts[-5:]
        wait_for(server, lambda: not Path(f"/proc/{pid}").exists())
        assert server.worker_pid("b") == other_pid
        assert "model-changed: 'a': a.gguf has other content" in server.log()


def test_changed_options_load_a_model_anew_and_the_others_not(folder: LiveFolder) -> None:
    with live_server(folder, "a") as server:
        pid = server.worker_pid("b")
        models = [{"id": "a", "file": "a.gguf", "contextTokens": 128}, {"id": "b", "file": "b.gguf"}]
        with Load(server, "a") as load:
            folder.tell(models=models)
            wait_for(server, lambda: server.get("/v1/models/a").json().get("contextTokens") == 128)
        assert load.failures == []
        assert server.worker_pid("b") == pid


def test_a_new_file_that_is_broken_leaves_the_old_one_in_service(folder: LiveFolder) -> None:
    with live_server(folder, "a") as server:
        before = text_of(server, "a")
        broken = folder.root / "broken.gguf"
        broken.write_bytes((folder.models / "a.gguf").read_bytes()[:300_000])
        with Load(server, "a") as load:
            os.replace(broken, folder.models / "a.gguf")
            wait_for(server, lambda: detail(server)["models"]["a"].get("replacement", {}).get("state") == "failed")
        assert load.failures == []
        model = detail(server)["models"]["a"]
        assert model["state"] == "ready"
        assert "not within the file bounds" in model["replacement"]["reason"]
        assert text_of(server, "a") == before
        assert "the old one goes on serving, the new one failed: " in server.log()
        swap_file(folder, "a", seed=9)
        wait_for(server, lambda: text_of(server, "a") != before)
        assert "replacement" not in detail(server)["models"]["a"]


def test_an_added_model_that_is_broken_does_not_take_the_server_out_of_service(folder: LiveFolder) -> None:
    with live_server(folder, "a") as server:
        (folder.models / "c.gguf").write_bytes((folder.models / "a.gguf").read_bytes()[:300_000])
        folder.tell("a", "b", "c")
        wait_for(server, lambda: detail(server)["models"].get("c", {}).get("state") == "failed")
        answer = server.post("/v1/completions", {"model": "c", "prompt": "x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_failed")


@pytest.mark.parametrize("text", ["models: [", "models: soon\n", "numSlots: 0\nreload: live\n"])
def test_a_server_yaml_that_is_wrong_is_reported_once_and_the_old_one_holds(folder: LiveFolder, text: str) -> None:
    with live_server(folder, "a") as server:
        folder.tell_text(text)
        wait_for(server, lambda: "configProblem" in detail(server))
        assert str(folder.config_path) in detail(server)["configProblem"]
        write_llama(folder.models / "c.gguf", seed=3)
        folder.tell("a", "c")
        wait_for(server, lambda: is_served(server, a="ready", c="ready"))
        assert "configProblem" not in detail(server)
        assert server.log().count("What was said before stays in force") == 1


def test_a_server_yaml_that_vanishes_or_says_off_changes_nothing(folder: LiveFolder) -> None:
    with live_server(folder, "a") as server:
        folder.config_path.unlink()
        wait_for(server, lambda: "it is gone" in detail(server).get("configProblem", ""))
        folder.tell("a", reload="off")
        wait_for(server, lambda: "server.yaml says reload: off" in server.log())
        folder.tell("a", reload="live")
        wait_for(server, lambda: is_served(server, a="ready"))
        assert server.log().count("applied") == 1


def test_a_set_is_applied_only_when_it_is_complete(folder: LiveFolder) -> None:
    with live_server(folder, "a") as server:
        wanted = folder.set_id("a", "c")
        folder.tell("a", "c", set=wanted)
        wait_for(server, lambda: "pending" in detail(server))
        manifest = f".nlocalmodels/sets/{wanted}.json"
        assert detail(server)["pending"] == {"set": wanted, "waitingFor": [manifest, "c.gguf"]}
        # Published, but the set is not complete: neither c nor the new a is touched.
        before = text_of(server, "a")
        write_llama(folder.models / "c.gguf", seed=3)
        swap_file(folder, "a", seed=8)
        wait_for(server, lambda: detail(server)["pending"]["waitingFor"] == [manifest])
        assert states(server) == {"a": "ready", "b": "ready"}
        assert text_of(server, "a") == before
        assert folder.publish_set("a", "c") == wanted
        wait_for(server, lambda: is_served(server, a="ready", c="ready") and text_of(server, "a") != before)
        assert "pending" not in detail(server)
        assert detail(server)["set"] == wanted
        assert server.log().count("waiting for") == 1
        assert f"set {wanted} is applied: added c; removed b; changed a" in server.log()


def test_what_is_published_before_server_yaml_tells_of_it_is_left_alone(folder: LiveFolder) -> None:
    folder.tell("a", "b", set=folder.set_id("a", "b"))
    # Slow enough for a record to be there when its file has been seen twice.
    with live_server(folder, "a", RELOAD_SECONDS="1") as server:
        before = text_of(server, "a")
        for name, seed in (("a", 8), ("c", 3)):
            swap_file(folder, name, seed)
            folder.record_fetched(name, "1" * 64)
        # A file of a person that comes later is served, so the others have been seen.
        write_llama(folder.models / "mine.gguf", seed=4)
        wait_for(server, lambda: is_served(server, a="ready", b="ready", mine="ready"))
        assert text_of(server, "a") == before
        folder.record_fetched("a", "0" * 64)
        folder.publish_set("a", "c")
        folder.tell("a", "c", set=folder.set_id("a", "c"))
        wait_for(server, lambda: is_served(server, a="ready", c="ready", mine="ready") and text_of(server, "a") != before)


def test_a_file_that_is_not_as_its_set_says_is_waited_for(folder: LiveFolder) -> None:
    with live_server(folder, "a") as server:
        write_llama(folder.models / "c.gguf", seed=3)
        size = (folder.models / "c.gguf").stat().st_size
        wanted = folder.publish_set("a", "c")
        os.truncate(folder.models / "c.gguf", size - 1)
        folder.tell("a", "c", set=wanted)
        reason = f"c.gguf: it has {size - 1} bytes, by the set {size}"
        wait_for(server, lambda: detail(server).get("pending", {}).get("waitingFor") == [reason])
        assert states(server) == {"a": "ready", "b": "ready"}


def test_a_file_of_a_person_is_served_when_it_is_there_and_unloaded_when_it_is_gone(folder: LiveFolder) -> None:
    with live_server(folder, "a") as server:
        whole = write_llama(folder.root / "x.gguf", seed=4).read_bytes()
        upload = folder.models / "mine.Q8_0.gguf"
        with upload.open("wb") as file:
            for offset in range(0, len(whole), 100_000):
                file.write(whole[offset : offset + 100_000])
                file.flush()
        wait_for(server, lambda: is_served(server, a="ready", b="ready", mine="ready"))
        before = text_of(server, "mine")
        write_llama(upload, seed=5)
        wait_for(server, lambda: states(server).get("mine") == "ready" and text_of(server, "mine") != before)
        upload.unlink()
        wait_for(server, lambda: is_served(server, a="ready", b="ready"))
        assert server.post("/v1/completions", {"model": "mine", "prompt": "x"}).status_code == 404


def test_a_second_quantization_renames_a_model_without_loading_it_again(folder: LiveFolder) -> None:
    write_llama(folder.models / "mine.Q4_0.gguf", seed=4)
    with live_server(folder, "a") as server:
        before, pid = text_of(server, "mine"), server.worker_pid("mine")
        with Load(server, "mine") as load:
            write_llama(folder.models / "mine.Q8_0.gguf", seed=5)
            wait_for(server, lambda: states(server).get("mine.Q8_0") == "ready")
        assert load.failures == []
        assert text_of(server, "mine") == text_of(server, "mine.Q4_0") == before
        os.kill(pid, 0)
        assert "model-renamed: 'mine' is now 'mine.Q4_0', in the same process" in server.log()


def test_a_declared_file_that_vanishes_goes_on_being_served(folder: LiveFolder) -> None:
    with live_server(folder, "a") as server:
        (folder.models / "b.gguf").unlink()
        wait_for(server, lambda: "b.gguf is gone from" in server.log())
        assert text_of(server, "b")
        assert states(server) == {"a": "ready", "b": "ready"}


def test_a_folder_that_cannot_be_read_changes_nothing(folder: LiveFolder) -> None:
    with live_server(folder, "a") as server:
        folder.models.rename(folder.root / "away")
        wait_for(server, lambda: "the models in force serve on" in server.log())
        assert states(server) == {"a": "ready", "b": "ready"}
        (folder.root / "away").rename(folder.models)
        write_llama(folder.models / "mine.gguf", seed=4)
        wait_for(server, lambda: is_served(server, a="ready", b="ready", mine="ready"))


def test_the_default_model_changes_once_the_new_one_serves(folder: LiveFolder) -> None:
    folder.tell("a", "b", defaultModel="a")
    with live_server(folder) as server:
        assert detail(server)["default"] == "a"
        # A process that cannot load keeps the old one in place.
        (folder.models / "c.gguf").write_bytes((folder.models / "a.gguf").read_bytes()[:300_000])
        folder.tell("b", "c", defaultModel="c")
        wait_for(server, lambda: detail(server)["models"].get("c", {}).get("state") == "failed")
        assert detail(server)["default"] == "a"
        before = server.post("/v1/completions", {"prompt": "x", "temperature": 0, "max_tokens": 12}).json()
        assert before["model"] == "a"
        swap_file(folder, "c", seed=5)
        wait_for(server, lambda: detail(server)["default"] == "c")
        assert server.post("/v1/completions", {"prompt": "x", "max_tokens": 2}).json()["model"] == "c"
        wait_for(server, lambda: is_served(server, b="ready", c="ready"))


def test_sigterm_during_a_reload_ends_the_server_with_0(folder: LiveFolder) -> None:
    with live_server(folder, "a") as server:
        pids = [server.worker_pid("a"), server.worker_pid("b")]
        write_llama(folder.models / "c.gguf", seed=3)
        swap_file(folder, "a", seed=8)
        folder.tell("a", "c")
        wait_for(server, lambda: "model-added: 'c'" in server.log())
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
