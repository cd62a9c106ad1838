"""Reads the pairs at the start of a GGUF file: whether it is a model, an adapter or a projector, and how large its cache is.

Source: the GGUF specification in ggml's docs/gguf.md. Only the first pairs are read, within a bound: whether the file is whole
is for llama.cpp to say, in a process of its own.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

_MAX_HEAD_BYTES = 64 * 1024
_SCALAR_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# general.file_type of a file whose weights are all F32.
_ALL_F32 = 0


class NotGgufError(Exception):
    """The file does not start with the GGUF magic."""


def read_general(path: Path) -> dict[str, str]:
    """Returns the general.* strings, as far as the bound.

    Raises:
        NotGgufError: the magic is not there.
        OSError: the file cannot be read.
    """
    return {key: value for key, value in _read_pairs(path).items() if key.startswith("general.") and isinstance(value, str)}


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides the size of a model's cache."""

    trained_context_tokens: int
    kv_values_per_token: int
    is_full_precision: bool


def read_shape(path: Path) -> Shape | None:
    """Returns a model's shape, None if it does not stand within the bound, or the file cannot be read."""
    try:
        pairs = _read_pairs(path)
    except (NotGgufError, OSError):
        return None
    architecture = pairs.get("general.architecture")

    def number(name: str, default: int = 0) -> int:
        value = pairs.get(f"{architecture}.{name}")
        return value if isinstance(value, int) else default

    num_heads, num_kv_heads = number("attention.head_count"), number("attention.head_count_kv")
    num_layers, context_tokens = number("block_count"), number("context_length")
    # Some models have another number of heads in each layer, which stands there as an array.
    if not (num_heads and num_kv_heads and num_layers and context_tokens):
        return None
    head_dim = number("attention.key_length", number("embedding_length") // num_heads)
    is_full_precision = pairs.get("general.file_type") == _ALL_F32
    return Shape(context_tokens, 2 * num_layers * num_kv_heads * head_dim, is_full_precision)


def _read_pairs(path: Path) -> dict[str, str | int]:
    """Returns the strings and whole numbers, as far as the bound; raises as `read_general`."""
    with path.open("rb") as file:
        head = file.read(_MAX_HEAD_BYTES)
    if head[:4] != b"GGUF":
        raise NotGgufError(f"it does not start with the GGUF magic but with {head[:4]!r}" if head else "it is empty")
    pairs: dict[str, str | int] = {}
    try:
        position = 24
        for _ in range(struct.unpack_from("<Q", head, 16)[0]):
            key, position = _text(head, position)
            (kind,) = struct.unpack_from("<I", head, position)
            position += 4
            if kind == _STRING:
                pairs[key], position = _text(head, position)
            elif kind in _SCALAR_FORMATS:
                (value,) = struct.unpack_from("<" + _SCALAR_FORMATS[kind], head, position)
                position += struct.calcsize("<" + _SCALAR_FORMATS[kind])
                if type(value) is int:
                    pairs[key] = value
            else:
                position = skip_value(head, kind, position)
    except struct.error:
        pass
    return pairs


def skip_value(data: bytes | mmap.mmap, kind: int, position: int) -> int:
    """Returns where a pair's value ends.

    Raises:
        struct.error: beyond the data, or it is of an unknown kind or an array of arrays.
    """
    if kind in _SCALAR_FORMATS:
        return position + struct.calcsize("<" + _SCALAR_FORMATS[kind])
    if kind == _STRING:
        return read_string(data, position)[1]
    if kind != _ARRAY:
        raise struct.error("an unknown kind")
    kind, length = struct.unpack_from("<IQ", data, position)
    position += 12
    if kind in _SCALAR_FORMATS:
        end = position + int(length) * struct.calcsize("<" + _SCALAR_FORMATS[kind])
        if end > len(data):
            raise struct.error("beyond the bound")
        return end
    if kind != _STRING:
        raise struct.error("an array of arrays")
    for _ in range(length):
        position = _string_end(data, position)
    return position


def read_string(data: bytes | mmap.mmap, position: int) -> tuple[bytes, int]:
    """Returns a string and where it ends; raises struct.error beyond the data."""
    end = _string_end(data, position)
    return data[position + 8 : end], end


def _string_end(data: bytes | mmap.mmap, position: int) -> int:
    end = position + 8 + int(struct.unpack_from("<Q", data, position)[0])
    if end > len(data):
        raise struct.error("beyond the bound")
    return end


def _text(data: bytes, position: int) -> tuple[str, int]:
    text, end = read_string(data, position)
    return text.decode("utf-8", "replace"), end
