"""A lean HTTP server of one file with byte ranges, in a process of its own, whose counters others can read."""

from __future__ import annotations

import mmap
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_RANGE = re.compile(rb"\r\nrange: bytes=(\d+)-(\d+)\r\n", re.IGNORECASE)
_PIECE_BYTES = 256 * 1024
_SENT_BYTES, _NUM_SENDING = 0, 1


class FileOrigin:
    def __init__(self, path: Path, bytes_per_second: float | None = None) -> None:
        self._path = path
        self._size_bytes = path.stat().st_size
        self._bytes_per_second = bytes_per_second
        # Items of a view are written in one piece; struct.pack_into writes zeros first, which another process can see.
        self._counters = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")
        self._lock = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/{path.name}"

    @property
    def sent_bytes(self) -> int:
        """Bytes of bodies, without those of probes."""
        return self._counters[_SENT_BYTES]

    @property
    def num_sending(self) -> int:
        return self._counters[_NUM_SENDING]

    @contextmanager
    def running(self) -> Iterator[FileOrigin]:
        """Forks, so it must be called while this process has one thread."""
        child = os.fork()
        if child == 0:
            try:
                self._serve()
            finally:
                os._exit(1)
        self._listening.close()
        try:
            yield self
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    def _serve(self) -> None:
        while True:
            connection, _ = self._listening.accept()
            threading.Thread(target=self._answer_all, args=(connection,), daemon=True).start()

    def _answer_all(self, connection: socket.socket) -> None:
        try:
            with connection, self._path.open("rb") as file:
                asked = b""
                while piece := connection.recv(65536):
                    asked += piece
                    if b"\r\n\r\n" in asked:
                        self._answer(connection, file.fileno(), asked)
                        asked = b""
        except OSError:
            pass  # the client was killed; that is what this is for

    def _answer(self, connection: socket.socket, file: int, asked: bytes) -> None:
        match = _RANGE.search(asked)
        start, end = (int(match[1]), min(int(match[2]) + 1, self._size_bytes)) if match else (0, self._size_bytes)
        head = f'HTTP/1.1 {206 if match else 200} x\r\nETag: "v1"\r\nContent-Length: {end - start}\r\n'
        head += f"Content-Range: bytes {start}-{end - 1}/{self._size_bytes}\r\n" if match else ""
        connection.sendall(head.encode() + b"\r\n")
        self._count(0, 1)
        try:
            is_probe = end == 1
            while start < end:
                num_bytes = os.sendfile(connection.fileno(), file, start, min(end - start, _PIECE_BYTES))
                start += num_bytes
                self._count(0 if is_probe else num_bytes, 0)
                if self._bytes_per_second is not None:
                    time.sleep(num_bytes / self._bytes_per_second)
        finally:
            self._count(0, -1)

    def _count(self, num_bytes: int, num_sending: int) -> None:
        with self._lock:
            self._counters[_SENT_BYTES] += num_bytes
            self._counters[_NUM_SENDING] += num_sending
