"""Writes small GGUF files: a bulky one with a valid header for downloads, and a tiny llama that really runs."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import gguf
import numpy as np

_ALIGNMENT = 32


def bulk_gguf(num_bytes: int, seed: int = 0) -> bytes:
    """Returns a valid GGUF file of exactly `num_bytes` (at least 256) with one tensor of random bytes."""
    name = b"filler"
    # Magic, version 3, one tensor, no metadata; then name, dimensions, type 24 (int8) and offset.
    head_bytes = 24 + 8 + len(name) + 4 + 8 + 4 + 8
    start = -(-head_bytes // _ALIGNMENT) * _ALIGNMENT
    tensor_bytes = num_bytes - start
    head = struct.pack("<4sIQQ", b"GGUF", 3, 1, 0)
    head += struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, tensor_bytes, 24, 0)
    return head.ljust(start, b"\0") + random.Random(seed).randbytes(tensor_bytes)
