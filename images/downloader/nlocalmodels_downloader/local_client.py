"""file:// sources: a bundle that was carried to a cluster without a network."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from nlocalmodels_downloader.clients import RemoteFile
from nlocalmodels_downloader.errors import DeniedError, GoneError, RefusedError, TransientError

_CHUNK_BYTES = 1024 * 1024


class LocalClient:
    """Reads files of this machine as if they were remote, so that they are verified and published like any other."""

    def probe(self, url: str) -> RemoteFile:
        """Raises GoneError, DeniedError or RefusedError when there is no file to read."""
        path = _path(url)
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise RefusedError(f"{url} is not a plain file; check the bundle.")
            with path.open("rb"):
                pass
        except FileNotFoundError:
            raise GoneError(f"{url}: there is no such file; check the bundle and its mount.") from None
        except PermissionError:
            raise DeniedError(f"{url}: this user may not read it; check owner and mode.") from None
        except ValueError:
            raise RefusedError(f"{url}: not the name of a file; correct it.") from None
        except OSError as error:
            raise RefusedError(f"{url}: cannot be read ({error.strerror}); check the bundle and its mount.") from None
        if status.st_size == 0:
            raise RefusedError(f"{url} is empty; check the bundle.")
        etag = f'"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"'
        return RemoteFile(url, url, status.st_size, etag, ranges=True)

    def wait_until_welcome(self, remote: RemoteFile, is_over: Callable[[], bool]) -> None:
        """A disk asks nobody to wait."""

    def refresh(self, remote: RemoteFile) -> RemoteFile:
        return remote

    @contextmanager
    def stream(self, remote: RemoteFile, start: int, end: int, check_etag: bool = False) -> Iterator[Iterator[memoryview]]:
        """Raises TransientError when the file changes or a read fails."""
        if check_etag and self.probe(remote.url).etag != remote.etag:
            raise TransientError(f"{remote.url} was changed meanwhile.")
        yield self._chunks(remote, start, end)

    def abort(self) -> None:
        """Reads of a local file end by themselves."""

    def _chunks(self, remote: RemoteFile, start: int, end: int) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        try:
            with _path(remote.url).open("rb", buffering=0) as file:
                file.seek(start)
                remaining = end - start
                while remaining:
                    length = file.readinto(buffer[: min(_CHUNK_BYTES, remaining)])
                    if not length:
                        raise TransientError(f"{remote.url} ended {remaining} bytes early.")
                    remaining -= length
                    yield buffer[:length]
        except OSError as error:
            raise TransientError(f"{remote.url}: a read failed ({error.strerror}).") from None


def _path(url: str) -> Path:
    # Taken literally but for %XX: a file's name may hold the signs that divide other URLs.
    return Path(unquote(url.removeprefix("file://")))
