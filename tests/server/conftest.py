"""Fixtures: folders with models, and servers over them that several tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.gguf_files import write_llama
from support.serving import RunningServer, running_server

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models: `tiny` (with a chat template) and `other` (without)."""
    folder = tmp_path_factory.mktemp("models")
    write_llama(folder / "tiny.F32.gguf", seed=1, chat_template=CHAT_TEMPLATE)
    write_llama(folder / "other.F32.gguf", seed=2)
    return folder


@pytest.fixture(scope="session")
def tiny_server(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server over both, with `tiny` as the default. Tests that share it leave it as it is."""
    log_path = tmp_path_factory.mktemp("log") / "server.log"
    with running_server(tiny_path, log_path, DEFAULT_MODEL="tiny") as server:
        server.wait_until("/readyz", 200)
        yield server
