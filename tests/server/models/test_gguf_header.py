from __future__ import annotations

import struct
from pathlib import Path

import pytest

from nlocalmodels_server.models.gguf_header import NotGgufError, read_general
from support.gguf_files import write_llama


def test_read_general_returns_type_and_architecture(tmp_path: Path) -> None:
    general = read_general(write_llama(tmp_path / "m.gguf", general_type="adapter"))
    assert general["general.architecture"] == "llama"
    assert general["general.type"] == "adapter"


@pytest.mark.parametrize("content", [b"", b"GGML", b"<html>login</html>"])
def test_read_general_refuses_when_the_magic_is_missing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(NotGgufError):
        read_general(path)


@pytest.mark.parametrize("num_bytes", [4, 12, 24, 30, 100])
def test_read_general_stops_quietly_when_the_header_is_cut(tmp_path: Path, num_bytes: int) -> None:
    whole = write_llama(tmp_path / "whole.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[:num_bytes])
    assert isinstance(read_general(cut), dict)


def test_read_general_stops_quietly_when_lengths_are_absurd(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + b"\x03\0\0\0" + b"\xff" * 64)
    assert read_general(path) == {}


@pytest.mark.parametrize("kind", [0, 4, 8, 9, 12])
def test_array_of_absurd_length_ends_what_is_read(tmp_path: Path, kind: int) -> None:
    path = tmp_path / "m.gguf"
    array = struct.pack("<Q1sIIQ", 1, b"a", 9, kind, 2**64 - 1)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + array + bytes(1000))
    assert read_general(path) == {}
