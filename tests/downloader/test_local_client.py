from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest

from nlocalmodels_downloader.errors import DeniedError, GoneError, RefusedError, TransientError
from nlocalmodels_downloader.local_client import LocalClient
from support.downloads import MIB

DATA = os.urandom(2 * MIB + 345)


@pytest.fixture
def client() -> LocalClient:
    return LocalClient()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a model (1).gguf"
    path.write_bytes(DATA)
    return path


def _url(path: Path) -> str:
    return f"file://{quote(str(path))}"


def _read(client: LocalClient, path: Path, start: int, end: int) -> bytes:
    with client.stream(client.probe(_url(path)), start, end) as chunks:
        return b"".join(bytes(chunk) for chunk in chunks)


def test_local_probe_tells_size_and_that_ranges_work(client: LocalClient, path: Path) -> None:
    remote = client.probe(_url(path))
    assert (remote.size_bytes, remote.ranges) == (len(DATA), True)
    assert client.probe(_url(path)) == remote == client.refresh(remote)


@pytest.mark.parametrize(
    ("start", "end"), [(0, len(DATA)), (0, 1), (MIB - 1, MIB + 1), (len(DATA) - 1, len(DATA)), (5, 2 * MIB + 5), (7, 7)]
)
def test_local_stream_reads_the_bytes_asked_for(client: LocalClient, path: Path, start: int, end: int) -> None:
    assert _read(client, path, start, end) == DATA[start:end]


def test_local_probe_takes_a_name_that_is_written_as_it_is(client: LocalClient, path: Path) -> None:
    assert client.probe(f"file://{path}").size_bytes == len(DATA)


def test_local_probe_says_gone_when_there_is_no_file(client: LocalClient, tmp_path: Path) -> None:
    with pytest.raises(GoneError, match=r"absent\.gguf: there is no such file"):
        client.probe(_url(tmp_path / "absent.gguf"))


def test_local_probe_refuses_an_empty_file(client: LocalClient, path: Path) -> None:
    path.write_bytes(b"")
    with pytest.raises(RefusedError, match="is empty"):
        client.probe(_url(path))


def test_local_probe_refuses_a_folder(client: LocalClient, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="not a plain file"):
        client.probe(_url(tmp_path))


def test_local_probe_says_denied_when_it_may_not_read(client: LocalClient, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    # The tests may run as root, who may read everything.
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DeniedError, match="check owner and mode"):
        client.probe(_url(path))


def test_local_stream_says_so_when_the_file_became_shorter(client: LocalClient, path: Path) -> None:
    remote = client.probe(_url(path))
    os.truncate(path, MIB + 1)
    read = bytearray()

    def stream() -> None:
        with client.stream(remote, 0, len(DATA)) as chunks:
            for chunk in chunks:
                read.extend(chunk)

    with pytest.raises(TransientError, match=f"ended {len(DATA) - MIB - 1} bytes early"):
        stream()
    assert bytes(read) == DATA[: MIB + 1], "what could be read is handed on"


def test_local_stream_says_so_when_the_file_has_gone(client: LocalClient, path: Path) -> None:
    remote = client.probe(_url(path))
    path.unlink()
    with pytest.raises(TransientError, match="a read failed"), client.stream(remote, 0, 5) as chunks:
        list(chunks)


def test_local_stream_takes_no_changed_file_when_no_digest_will_judge_it(client: LocalClient, path: Path) -> None:
    remote = client.probe(_url(path))
    with client.stream(remote, 0, 5, check_etag=True) as chunks:
        assert b"".join(bytes(chunk) for chunk in chunks) == DATA[:5]
    path.write_bytes(DATA[::-1])
    os.utime(path, ns=(1, 1))
    with pytest.raises(TransientError, match="was changed meanwhile"), client.stream(remote, 0, 5, check_etag=True):
        pass


def test_local_etag_is_of_one_version(client: LocalClient, path: Path, tmp_path: Path) -> None:
    remote = client.probe(_url(path))
    other = tmp_path / "other"
    other.write_bytes(DATA)
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    os.replace(other, path)
    assert client.probe(_url(path)) == replace(remote, etag=client.probe(_url(path)).etag)
    assert client.probe(_url(path)).etag != remote.etag
