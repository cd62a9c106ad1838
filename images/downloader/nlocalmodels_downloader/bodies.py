"""Reads bodies past urllib3, whose own calls copy each TLS record several times."""

from __future__ import annotations

import functools
import http.client
import io
import ssl
import time
from collections.abc import Callable


def read_body(body: http.client.HTTPResponse, buffer: memoryview, until_seconds: float) -> tuple[int, Exception | None]:
    """Reads until the buffer is full, a moment of the monotonic clock is over, or the body ends.

    Returns:
        How many bytes came, which are good also when an error ended the read; 0 and None at the end of the body.
    """
    length = 0
    try:
        if body.chunked or body.length is None:
            piece = body.read1(len(buffer))
            buffer[: len(piece)] = piece
            return len(piece), None
        if body.isclosed():
            return 0, None
        wanted = min(len(buffer), body.length)
        num_bytes = length = body.fp.readinto1(buffer[:wanted])
        # That took along what was read with the headers. Going on below, without the layers between, costs half as much.
        read = _tls_read(body) if wanted > io.DEFAULT_BUFFER_SIZE else body.fp.readinto1
        while num_bytes and length < wanted and time.monotonic() < until_seconds:
            num_bytes = read(buffer[length:wanted])
            length += num_bytes
        # What http.client does in its own read methods: the connection can be used again when the body is over.
        body.length -= length
        if body.length == 0 or num_bytes == 0:
            body._close_conn()  # type: ignore[attr-defined]
    except (http.client.HTTPException, OSError, ValueError) as error:
        return length, error
    return length, None


def _tls_read(body: http.client.HTTPResponse) -> Callable[[memoryview], int]:
    connection = getattr(getattr(body.fp, "raw", None), "_sock", None)
    if isinstance(connection, ssl.SSLSocket) and (tls := connection._sslobj) is not None:  # type: ignore[attr-defined]
        # 0 stands for as much as the buffer takes.
        return functools.partial(tls.read, 0)
    return body.fp.readinto1
