"""A person types `make run`."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from support.gguf_files import write_llama
from support.model_source import Behaviour, ModelSource, Request
from support.serving import free_port

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
# Nothing listens on the discard port: whatever asks the network through it fails.
NO_NETWORK = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")


@dataclass
class Terminal:
    """What the person sees, and where the server is."""

    address: str
    output: str
    process: subprocess.Popen[bytes]


@contextmanager
def make_run(tmp_path: Path, *variables: str, environ: dict[str, str] | None = None) -> Iterator[Terminal]:
    """Runs `make run`, yields when it says how to ask, and presses Ctrl-C at the end."""
    port = free_port()
    screen = tmp_path / f"screen-{port}"
    # Who runs the tests in the background lets them ignore Ctrl-C; a person's terminal does not.
    command = ["env", "--default-signal=INT", "make", "run", f"PORT={port}", f"MODEL_PATH={tmp_path / 'models'}", *variables]
    whole_environ = {**os.environ, **(environ or {})}
    with screen.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=whole_environ,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 150
        while "\ncurl " not in screen.read_text():
            assert process.poll() is None, screen.read_text()
            assert time.monotonic() < deadline, screen.read_text()
            time.sleep(0.1)
        yield Terminal(f"http://127.0.0.1:{port}", screen.read_text(), process)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        code = process.wait(60)
    # make ends by the signal itself; what counts is that everything it started has ended.
    assert code == -signal.SIGINT, screen.read_text()
    assert not processes_of_group(process.pid)


def processes_of_group(group: int) -> list[str]:
    """Returns the command lines of the processes in a process group."""
    found = subprocess.run(["ps", "-o", "args=", "-g", str(group)], capture_output=True, text=True, check=False)
    return found.stdout.splitlines()


def test_first_run_fetches_serves_and_says_how_to_ask(tmp_path: Path) -> None:
    with make_run(tmp_path) as terminal:
        assert "gemma-3-270m: fetching 241.4 MiB from http://127.0.0.1:" in terminal.output
        assert "is published, sha256 a5fd3b62230aa5ec" in terminal.output
        assert f"ready at {terminal.address}" in terminal.output
        (command,) = [line for line in terminal.output.splitlines() if line.startswith("curl ")]
        answer = subprocess.run(["sh", "-c", command], capture_output=True, check=True, timeout=60)
        assert b"Paris" in answer.stdout
        client = OpenAI(base_url=f"{terminal.address}/v1", api_key="none")
        assert [model.id for model in client.models.list().data] == ["gemma-3-270m"]
    with make_run(tmp_path, environ=NO_NETWORK) as again:
        assert "is present and verified, nothing to fetch" in again.output
        assert httpx.get(f"{again.address}/readyz", trust_env=False).status_code == 200


def test_models_come_from_the_hub_by_source(tmp_path: Path) -> None:
    """The hub is played by a server that redirects to another, as Hugging Face does."""
    data = write_llama(tmp_path / "written.gguf").read_bytes()
    commit = "a" * 40
    hub, store = ModelSource(), ModelSource()
    store.files["/blob"] = data

    def redirect(_: Request) -> Behaviour:
        digest = hashlib.sha256(data).hexdigest()
        headers = {"Location": f"{store.url}/blob?signature=secret", "X-Linked-Etag": f'"{digest}"', "X-Repo-Commit": commit}
        return Behaviour(status=302, headers=headers)

    hub.behave = redirect
    with hub.running(), store.running():
        models = f"MODELS=hf://org/tiny-GGUF/tiny-Q4_K_M.gguf@{commit}"
        with make_run(tmp_path, models, environ={"HF_ENDPOINT": hub.url}) as terminal:
            assert "model tiny (tiny-Q4_K_M.gguf): ready" in terminal.output
            assert "secret" not in terminal.output
    assert hub.requests[0].path == f"/org/tiny-GGUF/resolve/{commit}/tiny-Q4_K_M.gguf"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (["MODELS=gpt-4"], "'gpt-4' is not in the catalogue; there are starter"),
        (["PORT=taken"], "choose another: make run PORT="),
    ],
)
def test_mistake_is_named_with_its_remedy(tmp_path: Path, variables: list[str], expected: str) -> None:
    source = ModelSource()
    with source.running():
        port = source.url.rpartition(":")[2] if variables == ["PORT=taken"] else str(free_port())
        command = ["make", "run", f"MODEL_PATH={tmp_path}", *[v for v in variables if not v.startswith("PORT")], f"PORT={port}"]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode != 0
    assert expected in ended.stderr
