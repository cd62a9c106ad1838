"""The models that the test source's image holds, the same wherever they are made."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import embedded_model
import llama_wheel
from support import gguf_files

REAL_MODEL = embedded_model.FILE
INDEX = "index.json"
_BULK_BYTES = 64 * 1024 * 1024
_CHAT_TEMPLATE = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"


def source_index() -> dict[str, dict[str, Any]]:
    """Returns {file: {"sha256": …, "sizeBytes": …}} of everything under /models but the index itself, which says the same."""
    index: dict[str, dict[str, Any]] = json.loads((ensure_source_models() / INDEX).read_text())
    return index


def ensure_source_models() -> Path:
    """Returns the folder with the models, after making it if need be."""
    parent = llama_wheel.cache_dir() / "source-models"
    folder = parent / _key()
    with llama_wheel.exclusive(parent):
        if not folder.exists():
            for other in parent.iterdir():
                if other.is_dir():
                    shutil.rmtree(other)
            scratch = Path(tempfile.mkdtemp(dir=parent))
            _write_models(scratch)
            scratch.rename(folder)
    return folder


def _key() -> str:
    digest = hashlib.sha256(embedded_model.SHA256.encode())
    for path in (__file__, gguf_files.__file__):
        digest.update(Path(path).read_bytes())
    for package in ("gguf", "numpy"):
        digest.update(importlib.metadata.version(package).encode())
    return digest.hexdigest()[:12]


def _write_models(folder: Path) -> None:
    real = embedded_model.ensure_embedded_model()
    try:
        os.link(real, folder / REAL_MODEL)
    except OSError:
        shutil.copyfile(real, folder / REAL_MODEL)
    gguf_files.write_llama(folder / "tiny-a.Q8_0.gguf", seed=1)
    gguf_files.write_llama(folder / "tiny-b.F16.gguf", seed=2)
    gguf_files.write_llama(folder / "tiny-c.gguf", seed=3)
    gguf_files.write_llama(folder / "chat-d.gguf", seed=4, chat_template=_CHAT_TEMPLATE)
    (folder / "bulk-64m.gguf").write_bytes(gguf_files.bulk_gguf(_BULK_BYTES))
    index = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            index[path.name] = {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "sizeBytes": path.stat().st_size}
        path.chmod(0o644)
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
