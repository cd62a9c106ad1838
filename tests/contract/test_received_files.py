"""What a person copies onto the volume: the downloader takes it in, the server serves it."""

from __future__ import annotations

import threading
from pathlib import Path

from nlocalmodels_downloader.receive import Receiver
from nlocalmodels_downloader.settings import Settings
from nlocalmodels_server.config import DeclaredModel
from nlocalmodels_server.models.scan import scan
from support.gguf_files import write_llama


def test_received_files_are_served_beside_what_is_declared(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path, Settings(), threading.Event())
    receiver.open()
    write_llama(receiver.incoming / "mine.Q8_0.gguf")
    assert scan(tmp_path).models == []
    receiver.done_path.touch()
    receiver.wait(0.0)
    assert [received.problem for received in receiver.take_in()] == [None]
    for declared in (None, [], [DeclaredModel("chat", "chat.gguf")]):
        assert [model.id for model in scan(tmp_path, declared).models] == ["mine"]
