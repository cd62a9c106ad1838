"""The source of the benchmark: a bulk GGUF file, a throw-away certificate, and an nginx that serves them on loopback."""

from __future__ import annotations

import getpass
import hashlib
import os
import random
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from measure import BenchError

MIB = 1024 * 1024
REPO = "bench/bulk"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
THROTTLE = "20m"
_ALIGNMENT = 32
_WAIT_SECONDS = 10.0

_CONFIG = """
{user}
daemon off;
worker_processes auto;
pid {work}/nginx.pid;
error_log {work}/nginx-error.log;
events {{ worker_connections 256; }}
http {{
    log_format times '$msec $request_time $request_method $uri $status $body_bytes_sent "$http_range"';
    access_log {work}/access.log times;
    client_body_temp_path {work}/nginx-body;
    proxy_temp_path {work}/nginx-proxy;
    fastcgi_temp_path {work}/nginx-fastcgi;
    uwsgi_temp_path {work}/nginx-uwsgi;
    scgi_temp_path {work}/nginx-scgi;
    default_type application/octet-stream;
    keepalive_requests 100000;
    ssl_certificate {work}/certificate.pem;
    ssl_certificate_key {work}/key.pem;
    server {{
        listen 127.0.0.1:{port} ssl;
        location /free/ {{ alias {work}/files/; }}
        location /throttled/ {{ alias {work}/files/; limit_rate {throttle}; }}
        location /{repo}/resolve/{commit}/ {{
            alias {work}/files/;
            add_header X-Repo-Commit {commit};
            add_header X-Linked-Etag '"{sha256}"';
            add_header X-Linked-Size {size_bytes};
        }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class BulkFile:
    """A file to serve, with what a downloader is told about it."""

    path: Path
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Origin:
    """The running nginx."""

    url: str
    certificate: Path
    access_log: Path

    def request_times(self) -> list[float]:
        """Returns when each request arrived, in seconds of Unix time: nginx logs its end and how long it took."""
        times = []
        for line in self.access_log.read_text().splitlines():
            ended_at, took, _ = line.split(" ", 2)
            times.append(float(ended_at) - float(took))
        return times


def write_bulk_gguf(path: Path, size_bytes: int) -> BulkFile:
    """Writes a valid GGUF file with one int8 tensor of random bytes, as `bulk_gguf` of the tests does, in pieces."""
    name = b"filler"
    head_bytes = 24 + 8 + len(name) + 4 + 8 + 4 + 8
    start = -(-head_bytes // _ALIGNMENT) * _ALIGNMENT
    head = struct.pack("<4sIQQ", b"GGUF", 3, 1, 0)
    head += struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, size_bytes - start, 24, 0)
    generator = random.Random(size_bytes)
    digest = hashlib.sha256()
    piece, position = head.ljust(start, b"\0"), 0
    with open(path, "wb") as file:
        while piece:
            file.write(piece)
            digest.update(piece)
            position += len(piece)
            piece = generator.randbytes(min(MIB, size_bytes - position))
    return BulkFile(path, size_bytes, digest.hexdigest())


def write_certificate(work: Path) -> Path:
    """Makes a self-signed certificate for localhost, which each contender is told to trust."""
    certificate = work / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command += ["-keyout", str(work / "key.pem"), "-out", str(certificate)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BenchError(f"{result.stderr}\nopenssl made no certificate; its message is above.")
    return certificate


@contextmanager
def served(work: Path, hub_file: BulkFile) -> Iterator[Origin]:
    """Serves `work`/files over TLS on a port of the kernel's choice until the end of the block.

    Args:
        hub_file: the one that stands in the hub's place, with its digest in the headers.
    """
    certificate = write_certificate(work)
    with socket.create_server(("127.0.0.1", 0), backlog=511) as listener:
        port = listener.getsockname()[1]
        config = work / "nginx.conf"
        config.write_text(
            _CONFIG.format(
                # Started by root, nginx would give its workers to a user who cannot look into the temporary folder.
                user=f"user {getpass.getuser()};" if os.geteuid() == 0 else "",
                work=work,
                port=port,
                throttle=THROTTLE,
                repo=REPO,
                commit=COMMIT,
                sha256=hub_file.sha256,
                size_bytes=hub_file.size_bytes,
            )
        )
        # nginx takes over listening sockets that NGINX names, as in an upgrade on the fly, so nobody can take the port between.
        process = subprocess.Popen(
            ["nginx", "-e", str(work / "nginx-error.log"), "-p", str(work), "-c", str(config)],
            env={**os.environ, "NGINX": f"{listener.fileno()};"},
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        _wait_until_up(process, work)
        yield Origin(f"https://localhost:{port}", certificate, work / "access.log")
    finally:
        _stop(process)


def _wait_until_up(process: subprocess.Popen[bytes], work: Path) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while not (work / "nginx.pid").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            log = work / "nginx-error.log"
            raise BenchError(f"{log.read_text() if log.exists() else ''}\nnginx did not start; its log is above.")
        time.sleep(0.02)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_WAIT_SECONDS)
    except subprocess.TimeoutExpired:
        # The group is nginx's own: the master and the workers that it has left.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
