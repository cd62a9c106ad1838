"""Checks that a file is GGUF and whole, without reading its weights.

Source: the GGUF specification in ggml's docs/gguf.md, versions 2 and 3, little-endian; type sizes from ggml.c.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from nlocalmodels_downloader.errors import CorruptError

_MAGIC = b"GGUF"
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_MAX_COUNT = 1 << 20
_MAX_ARRAY_DEPTH = 4

# ggml type: (values in a block, bytes of a block). A type that is not here is judged by its offset alone.
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74),
    18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2),
    26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip


def looks_like_gguf(first_bytes: bytes | memoryview) -> bool:
    """Whether a file that starts so can be GGUF: tells a login page from a model after four bytes."""
    return bytes(first_bytes[:4]) == _MAGIC


def check_gguf(path: Path, name: str) -> None:
    """Checks header, metadata and that every tensor lies within the file, which errors call `name`.

    Raises:
        CorruptError: names what is wrong and where.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if not looks_like_gguf(file.read(4)):
            raise CorruptError(f"{name} does not start with the GGUF magic; only GGUF files are served.")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            reader = _Reader(data, name)
            end = _walk(reader)
    if end > size:
        raise CorruptError(f"{name} is truncated: its tensors end at byte {end}, the file at {size}; fetch it again.")


class _Reader:
    def __init__(self, data: mmap.mmap, name: str) -> None:
        self.data, self.name, self.position, self.size = data, name, 4, len(data)

    def take(self, num_bytes: int) -> int:
        """Moves past `num_bytes` and returns where they start."""
        start = self.position
        if num_bytes > self.size - start:
            raise CorruptError(f"{self.name} is truncated: its header runs past the end at byte {self.size}; fetch it again.")
        self.position = start + num_bytes
        return start

    def number(self, code: str) -> int:
        form = struct.Struct("<" + code)
        return int(form.unpack_from(self.data, self.take(form.size))[0])

    def string(self) -> bytes:
        length = self.number("Q")
        start = self.take(length)
        return self.data[start : start + length]

    def count(self, what: str) -> int:
        value = self.number("Q")
        if value > _MAX_COUNT:
            raise CorruptError(f"{self.name}: {value} {what} in its header is not believable; the file is damaged.")
        return value

    def skip_value(self, kind: int, depth: int = 0) -> None:
        if kind in _SCALAR_BYTES:
            self.take(_SCALAR_BYTES[kind])
        elif kind == _STRING:
            self.take(self.number("Q"))
        elif kind == _ARRAY and depth < _MAX_ARRAY_DEPTH:
            item_kind, length = self.number("I"), self.number("Q")
            if item_kind in _SCALAR_BYTES:
                self.take(_SCALAR_BYTES[item_kind] * length)
            else:
                for _ in range(length):
                    self.skip_value(item_kind, depth + 1)
        else:
            raise CorruptError(f"{self.name}: unknown value type {kind} in its header; the file is damaged or too new.")


def _walk(reader: _Reader) -> int:
    """Returns the byte at which the last tensor ends."""
    version = reader.number("I")
    if version not in (2, 3):
        raise CorruptError(f"{reader.name}: GGUF version {version} is not one that llama.cpp reads (2 or 3).")
    num_tensors, num_pairs = reader.count("tensors"), reader.count("metadata pairs")
    alignment = 32
    for _ in range(num_pairs):
        key, kind = reader.string(), reader.number("I")
        if key == b"general.alignment" and kind == _UINT32:
            alignment = reader.number("I")
            if not 0 < alignment <= 1 << 16 or alignment & (alignment - 1):
                raise CorruptError(f"{reader.name}: general.alignment {alignment} is not a power of two up to 65536.")
        else:
            reader.skip_value(kind)
    end = 0
    for _ in range(num_tensors):
        reader.string()
        num_dims = reader.number("I")
        if num_dims > 4:
            raise CorruptError(f"{reader.name}: a tensor with {num_dims} dimensions; the file is damaged.")
        num_values = 1
        for _ in range(num_dims):
            num_values *= reader.number("Q")
        kind, offset = reader.number("I"), reader.number("Q")
        block_values, block_bytes = _BLOCKS.get(kind, (1, 0))
        end = max(end, offset + num_values // block_values * block_bytes)
    return (reader.position + alignment - 1) // alignment * alignment + end if num_tensors else reader.position
