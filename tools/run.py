"""The main job on this machine: fetch models with the real downloader, serve them with the real server, say how to ask them."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

import embedded_model
from nlocalmodels_server.models.model_ids import short_id

ROOT = Path(__file__).resolve().parent.parent
CATALOGUE = ROOT / "charts" / "nlocalmodels" / "catalogue.yaml"


# Loopback is asked directly, whatever proxy the environment names.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def say(text: str) -> None:
    print(f"[run] {text}", flush=True)


def declared_models(words: list[str], catalogue: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns downloads.yaml's entries for ids and sets of the catalogue and hf:// sources; SystemExit names a wrong word."""
    entries: list[dict[str, Any]] = []
    for word in words:
        if word.startswith("hf://"):
            file = word.rpartition("@")[0].rpartition("/")[2] or word.rpartition("/")[2]
            entries.append({"id": short_id(file), "file": file, "source": word})
            continue
        for model_id in catalogue["sets"].get(word, [word]):
            model = catalogue["models"].get(model_id)
            if model is None:
                known = ", ".join([*catalogue["sets"], *catalogue["models"]])
                sys.exit(
                    f"[run] MODELS: '{model_id}' is not in the catalogue; there are {known}, and hf://ORG/REPO/FILE@COMMIT."
                )
            entries.append({"id": model_id, **{key: model[key] for key in ("file", "source", "sha256", "sizeBytes")}})
    return entries


@contextlib.contextmanager
def offered(folder: Path) -> Iterator[str]:
    """Offers a folder over HTTP with byte ranges on loopback, and yields its address."""
    app = Starlette(routes=[Mount("/", StaticFiles(directory=folder))])
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def download(entries: list[dict[str, Any]], model_path: Path, **settings: Any) -> None:
    """Runs the downloader as a pod would, with further settings of downloads.yaml; SystemExit with its exit code on failure."""
    model_path.mkdir(parents=True, exist_ok=True)
    config = model_path / ".downloads.yaml"
    config.write_text(yaml.safe_dump({**settings, "modelPath": str(model_path), "models": entries}, sort_keys=False))
    command = [sys.executable, "-m", "nlocalmodels_downloader", "sync", "--config", str(config)]
    code = subprocess.run(command, env=without_proxy(os.environ), check=False).returncode
    if code:
        say("the downloader could not get every model; its reason is above. What has arrived is kept: run again to go on.")
        sys.exit(code)


def without_proxy(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment with loopback exempt from a company's proxy."""
    exempt = ",".join(filter(None, [environ.get("NO_PROXY") or environ.get("no_proxy"), "127.0.0.1"]))
    return {**environ, "NO_PROXY": exempt, "no_proxy": exempt}


def refuse_taken_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            sys.exit(f"[run] Port {port} is taken, perhaps by Ollama; choose another: make run PORT={port + 1}")


def wait_until_ready(address: str, server: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Returns /readyz's answer; SystemExit when the server ends or no model is served."""
    while server.poll() is None:
        try:
            with DIRECT.open(f"{address}/readyz", timeout=5) as answer:
                ready: dict[str, Any] = json.load(answer)
                return ready
        except urllib.error.HTTPError as error:
            body = json.load(error)
            if not any(model["state"] in ("waiting", "loading") for model in body["models"].values()):
                server.terminate()
                server.wait()
                sys.exit(f"[run] The server is not ready: {body['message']}")
        except OSError:
            pass
        time.sleep(0.1)
    sys.exit(f"[run] The server ended with {server.returncode}; its reason is above.")


def serve(default_model: str, model_path: Path, port: int) -> int:
    address = f"http://127.0.0.1:{port}"
    environ = {
        **os.environ,
        "MODEL_PATH": str(model_path),
        "DEFAULT_MODEL": default_model,
        "HOST": "127.0.0.1",
        "PORT": str(port),
    }
    server = subprocess.Popen([sys.executable, "-m", "nlocalmodels_server"], env=environ)
    # Ctrl-C reaches the server too, since it is in the same foreground group; SIGTERM is passed on.
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ready = wait_until_ready(address, server)
    request = json.dumps(
        {"model": default_model, "prompt": "The capital city of France is called", "temperature": 0, "max_tokens": 5}
    )
    say(f"ready at {address}")
    for model_id, model in ready["models"].items():
        say(f"  model {model_id} ({model['file']}): {model['state']}{' - ' + model['reason'] if 'reason' in model else ''}")
    for file, reason in ready["problems"].items():
        say(f"  not served: {file}: {reason}")
    say("Ask it, in another terminal (Ctrl-C here ends the server):")
    print(f"\ncurl {address}/v1/completions -H 'Content-Type: application/json' -d '{request}'\n", flush=True)
    return server.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="", help="ids or sets of the catalogue, or hf://ORG/REPO/FILE@COMMIT")
    parser.add_argument("--model-path", type=Path, default=ROOT / ".models", help="where the models go")
    parser.add_argument("--port", type=int, default=11434)
    options = parser.parse_args()
    refuse_taken_port(options.port)
    model_path = options.model_path.resolve()
    words = options.models.split()
    if words:
        entries = declared_models(words, yaml.safe_load(CATALOGUE.read_text()))
        download(entries, model_path)
    else:
        model = embedded_model.ensure_embedded_model()
        with offered(model.parent) as address:
            facts = {"sha256": embedded_model.SHA256, "sizeBytes": embedded_model.SIZE_BYTES}
            entries = [{"id": embedded_model.ID, "file": model.name, "source": f"{address}/{model.name}", **facts}]
            download(entries, model_path)
    return serve(entries[0]["id"], model_path, options.port)


if __name__ == "__main__":
    sys.exit(main())
