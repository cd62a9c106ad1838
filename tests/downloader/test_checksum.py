"""The journal's CRC-32 is zlib's, whoever computes it: a journal outlives the image that wrote it."""

from __future__ import annotations

import importlib
import random
import sys
import zlib
from collections.abc import Iterator

import pytest

from nlocalmodels_downloader import checksum


@pytest.fixture(params=["with zlib-ng", "without"])
def _installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        if request.param == "without":
            patch.setitem(sys.modules, "zlib_ng.zlib_ng", None)
        importlib.reload(checksum)
        assert (checksum.crc32 is zlib.crc32) == (request.param == "without")
        yield
    importlib.reload(checksum)


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("num_bytes", [0, 1, 15, 16, 63, 4096, 65537, 1024 * 1024])
def test_checksum_is_that_of_zlib_in_one_piece_and_in_many(num_bytes: int) -> None:
    rng = random.Random(num_bytes)
    data = memoryview(rng.randbytes(num_bytes))
    assert checksum.crc32(data) == zlib.crc32(data)
    in_pieces = position = 0
    while position < num_bytes:
        piece = data[position : position + rng.randint(1, 70_000)]
        in_pieces = checksum.crc32(piece, in_pieces)
        position += len(piece)
    assert in_pieces == zlib.crc32(data)
