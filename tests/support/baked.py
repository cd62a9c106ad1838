"""Bakes a small model into an image, as `make bake` does."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

import images
import run
from support.source_image import ensure_source_models, source_index

ROOT = Path(__file__).resolve().parents[2]
BAKED_TAG = "test-baked"
MODEL = "tiny-c"


def bake(
    archive: Path,
    repository: str = "plturrell/nservices",
    tag: str = BAKED_TAG,
    files: Mapping[str, str] = MappingProxyType({MODEL: f"{MODEL}.gguf"}),
) -> dict[str, Any]:
    """Writes an image with the server and generated models to the archive, and returns the values that bake printed.

    Args:
        files: the source's file of each model, by its id.
    """
    images.ensure_images(["server"])
    with tempfile.TemporaryDirectory() as scratch, run.offered(ensure_source_models()) as address:
        config = Path(scratch) / "downloads.yaml"
        entries = [
            {"id": name, "file": file, "source": f"{address}/{file}", **source_index()[file]} for name, file in files.items()
        ]
        config.write_text(yaml.safe_dump({"modelPath": scratch, "models": entries}))
        command = [sys.executable, ROOT / "tools" / "bake.py", "--config", config, "--archive", archive]
        command += ["--image", f"docker.io/{repository}:{tag}", "--model-path", Path(scratch) / "models"]
        baked = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, timeout=600)
    assert baked.returncode == 0, baked.stdout + baked.stderr
    printed: dict[str, Any] = yaml.safe_load(baked.stdout.partition("Install it with these values (helm install -f FILE):")[2])
    for model in printed["models"]["add"].values():
        model["memory"] = "256Mi"
    return printed
