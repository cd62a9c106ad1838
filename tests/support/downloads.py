"""A source, a volume and what is declared: what a test of the downloader needs to run a sync in process or as a command."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from nlocalmodels_downloader.clients import RemoteFile
from nlocalmodels_downloader.config import Config, Model
from nlocalmodels_downloader.errors import DownloaderError
from nlocalmodels_downloader.oci_client import OciClient
from nlocalmodels_downloader.s3_client import S3Client
from nlocalmodels_downloader.settings import Settings
from nlocalmodels_downloader.sources import parse_source
from nlocalmodels_downloader.sync import Synchronizer
from support.gguf_files import bulk_gguf
from support.model_source import ModelSource

MIB = 1024 * 1024
HUB_COMMIT = "0123456789abcdef0123456789abcdef01234567"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def delay_first_stream(monkeypatch: pytest.MonkeyPatch, client: type[S3Client | OciClient], seconds: float) -> None:
    """Lets time pass between what a client learned of a file and the first request for its bytes."""
    stream, is_first = client.stream, threading.Lock()

    def late(self: Any, remote: RemoteFile, start: int, end: int, check_etag: bool = False) -> Any:
        if is_first.acquire(blocking=False):
            time.sleep(seconds)
        return stream(self, remote, start, end, check_etag)

    monkeypatch.setattr(client, "stream", late)


@dataclass
class Downloads:
    """Serves files, declares them and brings them to the volume."""

    source: ModelSource
    root: Path
    settings: Settings
    stop: threading.Event = field(default_factory=threading.Event)

    def serve(self, name: str = "m", num_bytes: int = 3 * MIB + 17, seed: int = 0) -> bytes:
        data = bulk_gguf(num_bytes, seed)
        self.source.files[f"/{name}.gguf"] = data
        return data

    def model(self, data: bytes | None, name: str = "m", source: str | None = None, size_bytes: int | None = None) -> Model:
        """Declares a served file, by its digest unless `data` is None."""
        text = source or f"{self.source.url}/{name}.gguf"
        return Model(name, f"{name}.gguf", parse_source(text), sha256(data) if data is not None else None, size_bytes)

    def sync(self, *models: Model, allow_unverified: bool = False) -> list[DownloaderError]:
        """Returns what failed, in order."""
        config = Config(self.root, models, allow_unverified)
        return [failure.error for failure in Synchronizer(config, self.settings, self.stop).run()]

    def published(self, name: str = "m") -> bytes | None:
        path = self.root / f"{name}.gguf"
        return path.read_bytes() if path.exists() else None

    @property
    def partials(self) -> Path:
        return self.root / ".nlocalmodels" / "partials" / f"{self.settings.owner}.0"

    def write_config(self, folder: Path, models: Sequence[Model]) -> Path:
        entries = [
            {
                "id": model.id,
                "file": model.file,
                "source": model.source.text,
                "sha256": model.sha256,
                "sizeBytes": model.size_bytes,
            }
            for model in models
        ]
        path = folder / "downloads.yaml"
        path.write_text(yaml.safe_dump({"modelPath": str(self.root), "models": entries}), encoding="utf-8")
        return path


def start_command(
    config: Path, environ: Mapping[str, str] | None = None, command: str = "sync", max_file_bytes: int | None = None
) -> subprocess.Popen[str]:
    """Starts the downloader as a container does."""
    limit = ["prlimit", f"--fsize={max_file_bytes}"] if max_file_bytes is not None else []
    return subprocess.Popen(
        [*limit, sys.executable, "-m", "nlocalmodels_downloader", command, "--config", str(config)],
        env={**os.environ, "POD_UID": "pod", "TERMINATION_MESSAGE_PATH": str(config.parent / "termination"), **(environ or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    """Polls until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain for {what}"
        time.sleep(0.005)
