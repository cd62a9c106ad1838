"""A real S3 store on loopback that checks signatures and their time: versitygw over a folder."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import botocore.session

import go_binaries

ACCESS_KEY = "test-access"
SECRET_KEY = "test-secret-0123456789"
_WAIT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class S3Store:
    url: str

    def put(self, bucket: str, key: str, body: bytes) -> None:
        """Uploads as any AWS client does; the bucket is made if need be."""
        client = botocore.session.get_session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.url,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        )
        if bucket not in [found["Name"] for found in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket=bucket)
        client.put_object(Bucket=bucket, Key=key, Body=body)
        client.close()


@contextmanager
def running_store(folder: Path) -> Iterator[S3Store]:
    """Runs a store that keeps its objects in a folder."""
    program = go_binaries.ensure("versitygw")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    data = folder / "objects"
    metadata = folder / "metadata"
    for path in (data, metadata):
        path.mkdir()
    # Beside the objects, since not every filesystem has extended attributes.
    command = [str(program), "--port", f"127.0.0.1:{port}", "posix", "--sidecar", str(metadata), str(data)]
    environ = {"PATH": os.defpath, "ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY}
    with (folder / "store.log").open("wb") as log:
        process = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
    try:
        _wait_for(port, process, folder / "store.log")
        yield S3Store(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(_WAIT_SECONDS)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the S3 store did not start:\n{log.read_text()}") from None
            time.sleep(0.05)
        else:
            return
