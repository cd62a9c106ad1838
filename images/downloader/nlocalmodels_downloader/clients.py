"""What a transfer needs of a source, whatever its protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """What a probe learned. `url` is where the bytes are after redirects, `origin_url` where to ask again when it expires."""

    origin_url: str
    url: str
    size_bytes: int | None
    etag: str | None
    ranges: bool
    if_range: bool = True
    linked_sha256: str | None = None
    commit: str | None = None


class Client(Protocol):
    """Reads files of one kind of source. Safe to use from several threads."""

    def probe(self, url: str) -> RemoteFile:
        """Learns what there is, without its bytes."""

    def wait_until_welcome(self, remote: RemoteFile, is_over: Callable[[], bool]) -> None:
        """Returns when the source may be asked again, after it asked anybody to wait, or soon after `is_over` says True."""

    def refresh(self, remote: RemoteFile) -> RemoteFile:
        """Resolves the origin again, for an address that has expired."""

    def stream(
        self, remote: RemoteFile, start: int, end: int, check_etag: bool = False
    ) -> AbstractContextManager[Iterator[memoryview]]:
        """Opens bytes `start` to `end` (exclusive) as chunks, each good until the next."""

    def abort(self) -> None:
        """Ends every read of a body under way in other threads."""
