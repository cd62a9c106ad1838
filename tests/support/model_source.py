"""A real HTTP server for models that can be told to misbehave, one request at a time."""

from __future__ import annotations

import mmap
import re
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class Behaviour:
    """How one request is answered; the defaults are those of a well-behaved server with byte ranges."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    ranges: bool = True
    etag: str | None = '"v1"'
    honours_if_range: bool = True
    range_shift: int = 0
    content_range: str | None = None
    close_after_bytes: int | None = None
    stall_after_bytes: int | None = None
    bytes_per_second: float | None = None
    chunked: bool = False
    extra_bytes: int = 0


@dataclass
class Request:
    """One request as it arrived, and how many bytes of body went out for it."""

    path: str
    headers: dict[str, str]
    client_port: int = 0
    sent_bytes: int = 0

    @property
    def range(self) -> tuple[int, int] | None:
        match = _RANGE.fullmatch(self.headers.get("range", ""))
        return (int(match[1]), int(match[2]) + 1 if match[2] else sys.maxsize) if match else None


class ModelSource:
    """Serves `files` (path to bytes) and what is in `folder`, and keeps every request.

    `behave` is called with each request before it is answered, from the request's own thread. `control`, where there is one,
    answers paths that begin with `/_` with a status and a body; those are not kept.
    """

    def __init__(
        self, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", port: int = 0, folder: Path | None = None
    ) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.behave: Callable[[Request], Behaviour] = lambda _: Behaviour()
        self.control: Callable[[str, str, bytes], tuple[int, bytes]] | None = None
        self.released = threading.Event()
        self._folder = folder.resolve() if folder is not None else None
        self._server = _Server((host, port), _Handler)
        self._server.source = self
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._scheme = "https" if tls else "http"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}"

    @property
    def sent_bytes(self) -> int:
        return sum(request.sent_bytes for request in self.requests)

    def body(self, path: str) -> bytes | memoryview | None:
        """Returns what is served under a path. A file of the folder stays on the disk, and is read as it is sent."""
        if path in self.files or self._folder is None:
            return self.files.get(path)
        file = (self._folder / path.lstrip("/")).resolve()
        if not file.is_file() or not file.is_relative_to(self._folder):
            return None
        with file.open("rb") as opened:
            return memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))

    def release(self) -> None:
        """Ends every stall, and lets later ones stall again."""
        released, self.released = self.released, threading.Event()
        released.set()

    @contextmanager
    def running(self) -> Iterator[ModelSource]:
        self._thread.start()
        try:
            yield self
        finally:
            self.released.set()
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    source: ModelSource

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is killed breaks its connections; that is what many tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def _control(self) -> bool:
        """Answers a control path; False when this is none."""
        control = cast(_Server, self.server).source.control
        if control is None or not self.path.startswith("/_"):
            return False
        status, body = control(self.command, self.path, self.rfile.read(int(self.headers.get("Content-Length", 0))))
        self._answer(Behaviour(), Request(self.path, {}), status, {"Content-Type": "application/json"}, body)
        return True

    def do_PUT(self) -> None:
        if not self._control():
            self.send_error(405)

    do_DELETE = do_PUT  # noqa: N815

    def do_GET(self) -> None:
        if self._control():
            return
        source = cast(_Server, self.server).source
        request = Request(self.path, {name.lower(): value for name, value in self.headers.items()}, self.client_address[1])
        source.requests.append(request)
        behaviour = source.behave(request)
        body = source.body(self.path.split("?")[0]) if behaviour.body is None else behaviour.body
        if behaviour.status is not None or body is None:
            self._answer(behaviour, request, behaviour.status or 404, {}, behaviour.body or b"")
            return
        headers = {"ETag": behaviour.etag} if behaviour.etag else {}
        span = request.range
        if_range = request.headers.get("if-range")
        if if_range is not None and (if_range != behaviour.etag or not behaviour.honours_if_range):
            span = None
        if span is None or not behaviour.ranges:
            self._answer(behaviour, request, 200, headers, body)
            return
        start, end = span[0] + behaviour.range_shift, min(span[1] + behaviour.range_shift, len(body))
        if start >= len(body):
            self._answer(behaviour, request, 416, {"Content-Range": f"bytes */{len(body)}"}, b"")
            return
        content_range = f"bytes {start}-{end - 1}/{len(body)}"
        if behaviour.content_range is None or behaviour.content_range:
            headers["Content-Range"] = behaviour.content_range or content_range
        self._answer(behaviour, request, 206, headers, memoryview(body)[start : end + behaviour.extra_bytes])

    def _answer(
        self, behaviour: Behaviour, request: Request, status: int, headers: dict[str, str], body: bytes | memoryview
    ) -> None:
        self.send_response(status)
        if behaviour.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif "Content-Length" not in behaviour.headers:
            self.send_header("Content-Length", str(len(body)))
        for name, value in {**headers, **behaviour.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self._send_body(behaviour, request, body)
        if behaviour.chunked and not self.close_connection:
            self.wfile.write(b"0\r\n\r\n")

    def _send_body(self, behaviour: Behaviour, request: Request, body: bytes | memoryview) -> None:
        view = memoryview(body)
        piece_bytes = 64 * 1024
        if behaviour.bytes_per_second is not None:
            piece_bytes = max(1, min(piece_bytes, int(behaviour.bytes_per_second / 20)))
        source = cast(_Server, self.server).source
        while view:
            limits = [
                limit - request.sent_bytes
                for limit in (behaviour.close_after_bytes, behaviour.stall_after_bytes)
                if limit is not None
            ]
            piece = view[: min([piece_bytes, *limits])]
            if piece:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), bytes(piece)) if behaviour.chunked else piece)
                request.sent_bytes += len(piece)
                view = view[len(piece) :]
            if behaviour.close_after_bytes is not None and request.sent_bytes >= behaviour.close_after_bytes:
                self.close_connection = True
                return
            if behaviour.stall_after_bytes is not None and request.sent_bytes >= behaviour.stall_after_bytes:
                self.wfile.flush()
                source.released.wait(60)
                self.close_connection = True
                return
            if behaviour.bytes_per_second is not None:
                time.sleep(len(piece) / behaviour.bytes_per_second)
