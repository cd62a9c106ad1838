from __future__ import annotations

import struct
from pathlib import Path

import pytest

from nlocalmodels_downloader.errors import CorruptError
from nlocalmodels_downloader.gguf import check_gguf, looks_like_gguf
from support.gguf_files import bulk_gguf


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _pair(key: bytes, kind: int, value: bytes) -> bytes:
    return _string(key) + struct.pack("<I", kind) + value


def _file(*pairs: bytes, tensors: bytes = b"", num_tensors: int = 0, version: int = 3, num_pairs: int | None = None) -> bytes:
    count = len(pairs) if num_pairs is None else num_pairs
    return struct.pack("<4sIQQ", b"GGUF", version, num_tensors, count) + b"".join(pairs) + tensors


def _tensor(num_values: int, kind: int, offset: int, num_dims: int = 1) -> bytes:
    return (
        _string(b"t")
        + struct.pack("<I", num_dims)
        + struct.pack("<Q", num_values) * num_dims
        + struct.pack("<IQ", kind, offset)
    )


def _check(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    check_gguf(path, "m.gguf")


@pytest.mark.parametrize("num_bytes", [256, 1000, 1 << 20])
def test_gguf_accepts_a_whole_file_and_no_byte_less(tmp_path: Path, num_bytes: int) -> None:
    data = bulk_gguf(num_bytes)
    _check(tmp_path, data)
    with pytest.raises(CorruptError, match="truncated"):
        _check(tmp_path, data[:-1])


@pytest.mark.parametrize("num_bytes", range(4, 88, 3))
def test_gguf_refuses_a_header_cut_anywhere(tmp_path: Path, num_bytes: int) -> None:
    with pytest.raises(CorruptError, match=r"m\.gguf"):
        _check(tmp_path, bulk_gguf(256)[:num_bytes])


def test_gguf_reads_past_every_kind_of_value(tmp_path: Path) -> None:
    array_of_strings = struct.pack("<IQ", 8, 2) + _string(b"a") + _string(b"bc")
    nested = struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 4, 3) + bytes(12)
    pairs = [_pair(b"s", 8, _string(b"x")), _pair(b"l", 9, array_of_strings), _pair(b"n", 9, nested), _pair(b"d", 12, bytes(8))]
    _check(tmp_path, _file(*pairs))


def test_gguf_honours_the_alignment(tmp_path: Path) -> None:
    head = _file(_pair(b"general.alignment", 4, struct.pack("<I", 4096)), tensors=_tensor(8, 0, 0), num_tensors=1)
    _check(tmp_path, head.ljust(4096, b"\0") + bytes(32))
    with pytest.raises(CorruptError, match="truncated"):
        _check(tmp_path, head.ljust(4096, b"\0") + bytes(31))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "magic"),
        (b"GG", "magic"),
        (b"PK\x03\x04" + bytes(100), "magic"),
        (_file(version=1), "version 1"),
        (_file(version=0x03000000), "version"),
        (_file(num_pairs=1 << 40), "not believable"),
        (_file(num_tensors=1 << 40), "not believable"),
        (_file(_pair(b"k", 99, b"")), "unknown value type 99"),
        (_file(_pair(b"k", 8, struct.pack("<Q", 1 << 63))), "truncated"),
        (_file(_pair(b"k", 9, struct.pack("<IQ", 4, 1 << 62))), "truncated"),
        (_file(_pair(b"k", 9, struct.pack("<IQ", 8, 1 << 62))), "truncated"),
        (_file(_pair(b"k", 9, struct.pack("<IQ", 9, 1) * 9)), "unknown value type 9"),
        (_file(_pair(b"general.alignment", 4, struct.pack("<I", 3))), "power of two"),
        (_file(_pair(b"general.alignment", 4, struct.pack("<I", 0))), "power of two"),
        (_file(tensors=_tensor(1, 0, 0, num_dims=5), num_tensors=1), "5 dimensions"),
        (_file(tensors=_tensor(1 << 63, 0, 0, num_dims=4), num_tensors=1), "truncated"),
        (_file(tensors=_tensor(1, 0, 1 << 63), num_tensors=1), "truncated"),
    ],
)
def test_gguf_names_what_is_wrong(tmp_path: Path, data: bytes, problem: str) -> None:
    with pytest.raises(CorruptError, match=problem):
        _check(tmp_path, data)


def test_looks_like_gguf_tells_a_page_from_a_model() -> None:
    assert looks_like_gguf(b"GGUF\x03")
    assert not looks_like_gguf(b"<!DOCTYPE html>")
    assert not looks_like_gguf(b"GGU")
