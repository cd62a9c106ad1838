"""A server that follows its server.yaml and its folder, quickly."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from nlocalmodels_downloader.manifest import ManifestEntry, set_id, write_manifest
from nlocalmodels_downloader.volume import Verified, Volume
from support.serving import RunningServer, running_server

_DEADLINE_SECONDS = 60.0


@dataclass
class LiveFolder:
    """A folder of models and the server.yaml beside it, which is replaced at once, as a ConfigMap's is."""

    root: Path
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def config_path(self) -> Path:
        return self.root / "config" / "server.yaml"

    def tell(self, *models: str, **more: Any) -> None:
        """Writes a server.yaml that declares `<id>.gguf` for each id."""
        declared = [{"id": name, "file": f"{name}.gguf"} for name in models]
        self.tell_text(yaml.safe_dump({"reload": "live", "models": declared, **self.told, **more}))

    def tell_text(self, text: str) -> None:
        self.config_path.parent.mkdir(parents=True, exist_ok=True)
        data = self.config_path.parent / f"..{time.monotonic_ns()}"
        data.mkdir()
        (data / "server.yaml").write_text(text)
        link = data / "link"
        link.symlink_to(data / "server.yaml")
        os.replace(link, self.config_path)

    def set_id(self, *names: str) -> str:
        return set_id(self._entries(names, 1))

    def publish_set(self, *names: str) -> str:
        """Leaves the manifest of a set, as the downloader does, with the sizes of the files that are there."""
        sizes = [(self.models / f"{name}.gguf").stat().st_size for name in names]
        return write_manifest(self.models / ".nlocalmodels" / "sets", self._entries(names, *sizes))

    def record_fetched(self, name: str, sha256: str) -> None:
        """Leaves the record of a file that the downloader fetched."""
        Volume(self.models, "test").record_verified(f"{name}.gguf", Verified(sha256, "https://models.example"))

    @staticmethod
    def _entries(names: tuple[str, ...], *sizes: int) -> list[ManifestEntry]:
        padded = (*sizes, *sizes[-1:] * len(names))
        return [ManifestEntry(name, f"{name}.gguf", "0" * 64, size) for name, size in zip(names, padded, strict=False)]


@contextmanager
def live_server(folder: LiveFolder, default: str | None = None, **environ: str) -> Iterator[RunningServer]:
    """Yields a ready server that polls all the time."""
    environ = {"SERVER_CONFIG": str(folder.config_path), "RELOAD_SECONDS": "0.05", **environ}
    if default is not None:
        environ["DEFAULT_MODEL"] = default
    with running_server(folder.models, folder.root / "log", 0, **environ) as server:
        server.wait_until("/readyz", 200)
        yield server


def states(server: RunningServer) -> dict[str, str]:
    return {model["id"]: model["state"] for model in server.get("/v1/models").json()["data"]}


def wait_for(server: RunningServer, condition: Callable[[], bool]) -> None:
    """Polls until the condition holds."""
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, server.log()
        time.sleep(0.02)


def text_of(server: RunningServer, model: str) -> str:
    """Returns a model's greedy text, which tells one file from another."""
    answer = server.post("/v1/completions", {"model": model, "prompt": "x", "temperature": 0, "max_tokens": 12})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


class Load:
    """Constant load on one model from several clients, each with a connection that it keeps."""

    def __init__(self, server: RunningServer, model: str, num_clients: int = 4) -> None:
        self.failures: list[str] = []
        self.texts: list[str] = []
        self._server = server
        self._model = model
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(num_clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self) -> None:
        body = {"model": self._model, "prompt": "x", "temperature": 0, "max_tokens": 12}
        with httpx.Client(base_url=self._server.url, timeout=60) as client:
            while not self._end.is_set():
                try:
                    answer = client.post("/v1/completions", json=body)
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                    continue
                if answer.status_code == 200:
                    self.texts.append(answer.json()["choices"][0]["text"])
                else:
                    self.failures.append(answer.text)
