"""Reads the general.* strings at the start of a GGUF file, to tell a model from an adapter or a projector.

Source: the GGUF specification in ggml's docs/gguf.md. Only the first pairs are read, within a bound: whether the file is whole
is for llama.cpp to say, in a process of its own.
"""

from __future__ import annotations

import struct
from pathlib import Path

_MAX_HEAD_BYTES = 64 * 1024
_SCALAR_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING = 8


class NotGgufError(Exception):
    """The file does not start with the GGUF magic."""


def read_general(path: Path) -> dict[str, str]:
    """Returns the general.* strings that stand before the first array, as far as the bound.

    Raises:
        NotGgufError: the magic is not there.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_MAX_HEAD_BYTES)
    if head[:4] != b"GGUF":
        raise NotGgufError(f"it does not start with the GGUF magic but with {head[:4]!r}" if head else "it is empty")
    general: dict[str, str] = {}
    try:
        position = 24
        for _ in range(struct.unpack_from("<Q", head, 16)[0]):
            key, position = _string(head, position)
            (kind,) = struct.unpack_from("<I", head, position)
            position += 4
            if kind == _STRING:
                value, position = _string(head, position)
                if key.startswith("general."):
                    general[key] = value
            elif kind in _SCALAR_FORMATS:
                position += struct.calcsize("<" + _SCALAR_FORMATS[kind])
            else:
                break
    except struct.error:
        pass
    return general


def _string(head: bytes, position: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", head, position)
    end = position + 8 + int(length)
    if end > len(head):
        raise struct.error("beyond the bound")
    return head[position + 8 : end].decode("utf-8", "replace"), end
