"""Weights of a type that the CPU multiplies slowly, written in a wider one that holds the very same values.

Files called Q4_K have tensors of Q5_0 wherever a row is no multiple of 256 values, as in most small models. llama.cpp has no
AMX kernels for these; for Q8_0 it has. A block of Q5_0 is a scale and 32 whole numbers from -16 to 15, one of Q8_0 is a scale
and 32 from -128 to 127: the same scale and numbers, in 34 bytes instead of 22. Source of the layouts: ggml-common.h and
docs/gguf.md of ggml.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nlocalmodels_server.models.gguf_header import read_string, skip_value

if TYPE_CHECKING:
    from numpy.typing import NDArray

# More than this is not taken beside what is planned for a model (models/memory_plan.py).
MAX_MORE_BYTES = 256 * 1024**2
_Q5_0, _Q8_0 = 6, 8
_NUM_VALUES, _Q5_0_BYTES, _Q8_0_BYTES = 32, 22, 34
_PIECE_BLOCKS = 1 << 18
_UINT32 = 4
_MAX_DIMENSIONS = 4
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class Widened:
    """An open file in memory, and what is different in it."""

    fd: int
    num_tensors: int

    @property
    def path(self) -> Path:
        return Path(f"/proc/self/fd/{self.fd}")

    def close(self) -> None:
        os.close(self.fd)


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: bytes
    dimensions: tuple[int, ...]
    kind: int
    offset: int
    num_bytes: int

    @property
    def is_widened(self) -> bool:
        return self.kind == _Q5_0

    @property
    def num_new_bytes(self) -> int:
        return self.num_bytes // _Q5_0_BYTES * _Q8_0_BYTES if self.is_widened else self.num_bytes


class _UnknownLayoutError(Exception):
    """The file is not what this module understands; llama.cpp may say why."""


def widen(path: Path) -> Widened | None:
    """Writes a copy with Q8_0 in place of Q5_0 into memory.

    Returns:
        None where there is nothing to gain, the copy would take too much, or the file is odd: a split one, a broken one.

    Raises:
        OSError: the file cannot be read, or the copy not be written.
    """
    if not path.stat().st_size:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            head, infos, alignment = _read_head(data)
            start, tensors = _read_tensors(data, infos, alignment)
        except (_UnknownLayoutError, struct.error, OverflowError):
            return None
        widened = [tensor for tensor in tensors if tensor.is_widened]
        # Weights that are looked up as well as multiplied stand in memory twice, and no longer in the file's pages.
        kept_bytes = max((tensor.num_bytes for tensor in tensors), default=0)
        more_bytes = sum(tensor.num_new_bytes - tensor.num_bytes for tensor in tensors)
        if not widened or more_bytes + kept_bytes > MAX_MORE_BYTES:
            return None
        fd = os.memfd_create(path.name)
        try:
            with open(fd, "wb", closefd=False) as copy:
                copy.write(data[:head])
                copy.writelines(_new_data(data, start, tensors, head, alignment))
        except BaseException:
            os.close(fd)
            raise
        return Widened(fd, len(widened))


def q8_0_of(blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns blocks of Q5_0, one a row of 22 bytes, as blocks of Q8_0, of 34 bytes: the same scales and numbers."""
    high_bits = np.ascontiguousarray(blocks[:, 2:6]).view("<u4") >> np.arange(_NUM_VALUES, dtype=np.uint32) & 1
    high = high_bits.astype(np.uint8) << 4
    low = blocks[:, 6:]
    wide = np.empty((len(blocks), _Q8_0_BYTES), dtype=np.uint8)
    wide[:, :2] = blocks[:, :2]
    # The first half of a block's numbers are in the lower halves of its bytes. Below zero it wraps around, as int8 does.
    wide[:, 2:18] = (low & 15 | high[:, :16]) - np.uint8(16)
    wide[:, 18:] = (low >> 4 | high[:, 16:]) - np.uint8(16)
    return wide


def _new_data(data: mmap.mmap, start: int, tensors: list[_Tensor], head: int, alignment: int) -> Iterator[bytes | memoryview]:
    """Yields what follows the head: the tensors' descriptions, then their data, each at a multiple of the alignment."""
    offset, infos = 0, bytearray()
    for tensor in tensors:
        infos += struct.pack("<Q", len(tensor.name)) + tensor.name
        infos += struct.pack(f"<I{len(tensor.dimensions)}Q", len(tensor.dimensions), *tensor.dimensions)
        infos += struct.pack("<IQ", _Q8_0 if tensor.is_widened else tensor.kind, offset)
        offset = _aligned(offset + tensor.num_new_bytes, alignment)
    yield bytes(infos)
    yield bytes(_aligned(head + len(infos), alignment) - head - len(infos))
    for tensor in tensors:
        first, end = start + tensor.offset, start + tensor.offset + tensor.num_bytes
        if tensor.is_widened:
            for piece in range(first, end, _PIECE_BLOCKS * _Q5_0_BYTES):
                raw = np.frombuffer(data[piece : min(end, piece + _PIECE_BLOCKS * _Q5_0_BYTES)], dtype=np.uint8)
                yield q8_0_of(raw.reshape(-1, _Q5_0_BYTES)).data
        else:
            yield data[first:end]
        yield bytes(_aligned(tensor.num_new_bytes, alignment) - tensor.num_new_bytes)


def _aligned(number: int, alignment: int) -> int:
    return -(-number // alignment) * alignment


def _read_head(data: mmap.mmap) -> tuple[int, list[tuple[bytes, tuple[int, ...], int, int]], int]:
    """Returns where the tensors' descriptions begin, these (name, dimensions, type, offset), and the alignment of data."""
    magic, version, num_tensors, num_pairs = struct.unpack_from("<4sIQQ", data)
    if magic != b"GGUF" or version != 3:
        raise _UnknownLayoutError
    position, alignment = 24, _DEFAULT_ALIGNMENT
    for _ in range(num_pairs):
        key, position = read_string(data, position)
        (kind,) = struct.unpack_from("<I", data, position)
        if key == b"general.alignment" and kind == _UINT32:
            (alignment,) = struct.unpack_from("<I", data, position + 4)
        # The other files of a split model are found by the first one's path.
        if key.startswith(b"split."):
            raise _UnknownLayoutError
        position = skip_value(data, kind, position + 4)
    head, infos = position, []
    for _ in range(num_tensors):
        name, position = read_string(data, position)
        (num_dimensions,) = struct.unpack_from("<I", data, position)
        if num_dimensions > _MAX_DIMENSIONS:
            raise _UnknownLayoutError
        dimensions = struct.unpack_from(f"<{num_dimensions}Q", data, position + 4)
        kind, offset = struct.unpack_from("<IQ", data, position + 4 + 8 * num_dimensions)
        position += 16 + 8 * num_dimensions
        infos.append((name, dimensions, kind, offset))
    if not alignment or alignment & alignment - 1:
        raise _UnknownLayoutError
    # The last one's offset tells where the data of all of them begins: behind the descriptions.
    infos.append((b"", (), -1, len(data) - _aligned(position, alignment)))
    return head, infos, alignment


def _read_tensors(
    data: mmap.mmap, infos: list[tuple[bytes, tuple[int, ...], int, int]], alignment: int
) -> tuple[int, list[_Tensor]]:
    """Returns where the data begins, and the tensors. Each one's bytes end where the next one's begin, padding included."""
    start = len(data) - infos[-1][3]
    tensors = []
    for (name, dimensions, kind, offset), (_, _, _, next_offset) in pairwise(infos):
        num_bytes = next_offset - offset
        if kind == _Q5_0:
            num_values = math.prod(dimensions)
            needed_bytes = num_values // _NUM_VALUES * _Q5_0_BYTES
            if num_values % _NUM_VALUES or not 0 <= num_bytes - needed_bytes < alignment:
                raise _UnknownLayoutError
            num_bytes = needed_bytes
        # In order and apart, or a small file could name the same bytes a thousand times.
        if num_bytes <= 0 or offset % alignment:
            raise _UnknownLayoutError
        tensors.append(_Tensor(name, dimensions, kind, offset, num_bytes))
    return start, tensors
