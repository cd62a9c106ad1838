"""Brings every missing block of one file into its partial, over several connections."""

from __future__ import annotations

import logging
import queue
import threading
import zlib
from collections import deque
from dataclasses import dataclass, replace

from nlocalmodels_downloader.errors import (
    CorruptError,
    ExpiredError,
    RangeError,
    StoppedError,
)
from nlocalmodels_downloader.gguf import looks_like_gguf
from nlocalmodels_downloader.http_client import HttpClient, RemoteFile
from nlocalmodels_downloader.partial import Partial
from nlocalmodels_downloader.progress import ModelProgress
from nlocalmodels_downloader.retry import RetryPolicy, run_until
from nlocalmodels_downloader.segments import BLOCK_BYTES, Segment, plan_segments, segment_bytes

log = logging.getLogger(__name__)

# Times 0.2 s: how long a stop waits for connections that have not had an answer yet.
_NUM_WAITS_AFTER_STOP = 5


@dataclass(slots=True)
class _Cursor:
    """Where a segment's stream stands. It outlives a broken connection, so no byte is asked for twice within a run."""

    segment: Segment
    position: int
    block_crc32: int = 0


class Transfer:
    """One file's way from a source into a partial."""

    def __init__(
        self,
        client: HttpClient,
        remote: RemoteFile,
        partial: Partial,
        progress: ModelProgress,
        stop: threading.Event,
        num_connections: int,
        num_attempts: int,
        digest_is_known: bool = True,
    ) -> None:
        self._client = client
        self._remote = remote
        self._partial = partial
        self._progress = progress
        self._stop = stop
        self._abort = threading.Event()
        self._num_connections = num_connections
        self._digest_is_known = digest_is_known
        self._probe_policy = RetryPolicy(num_attempts, progress.furthest_bytes, stop, progress.retrying)
        # Waits on the abort, so that one connection's final failure ends the others' waits, too.
        self._policy = RetryPolicy(num_attempts, progress.furthest_bytes, self._abort, progress.retrying)
        self._remote_lock = threading.Lock()

    def run(self) -> None:
        """Returns when no block is missing.

        Raises:
            DownloaderError: what stopped it; all complete blocks are kept.
        """
        while self._partial.missing_blocks():
            try:
                self._fetch_missing()
            except RangeError as error:
                self._look_again(error)

    def _look_again(self, error: RangeError) -> None:
        """Finds out why a range was not answered as one, and asks for less: no If-Range, then no ranges."""
        before = self._remote
        now = self._probe_policy.run(lambda: run_until(self._stop, lambda: self._client.probe(before.origin_url)))
        if now.size_bytes not in (None, before.size_bytes):
            raise CorruptError(
                f"{error} The source now holds {now.size_bytes} bytes instead of {before.size_bytes}: "
                "it was replaced meanwhile; correct the declaration."
            )
        if now.etag != before.etag and not self._digest_is_known:
            raise CorruptError(
                f"{error} The source's file was replaced meanwhile, and no digest tells old bytes from new; "
                "run again, or declare sha256."
            )
        if now.ranges and before.if_range and before.etag is not None:
            # With a digest to judge the bytes by, it does not matter what became of the ETag.
            log.warning("%s: %s Ranges are asked for without If-Range.", self._progress.model_id, error)
            now = replace(now, if_range=False)
        else:
            log.warning("%s: %s The whole file is fetched in one stream.", self._progress.model_id, error)
            now = replace(now, ranges=False)
        self._remote = replace(now, size_bytes=before.size_bytes)

    def _fetch_missing(self) -> None:
        if self._remote.ranges:
            segments = plan_segments(
                self._partial.missing_blocks(), self._partial.size_bytes, segment_bytes(self._num_connections)
            )
        else:
            segments = deque([Segment(0, self._partial.size_bytes)])
        outcomes: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._abort.clear()
        self._progress.restarted(self._partial.complete_bytes)
        threads = [
            threading.Thread(target=self._work, args=(segments, outcomes), name=f"connection-{number}", daemon=True)
            for number in range(min(self._num_connections, len(segments)))
        ]
        for thread in threads:
            thread.start()
        first_error: BaseException | None = None
        num_running = len(threads)
        num_waits_left = _NUM_WAITS_AFTER_STOP
        while num_running:
            try:
                outcome = outcomes.get(timeout=0.2)
            except queue.Empty:
                if self._stop.is_set():
                    self._abort.set()
                    self._client.abort()
                    num_waits_left -= 1
                if num_waits_left == 0:
                    # The rest wait for a connection or a first byte; they will find a closed partial.
                    break
                continue
            num_running -= 1
            if outcome is not None and first_error is None:
                first_error = outcome
                self._abort.set()
                self._client.abort()
        if self._stop.is_set():
            raise StoppedError("stopped; the next run goes on from here.")
        if first_error is not None:
            raise first_error

    def _work(self, segments: deque[Segment], outcomes: queue.SimpleQueue[BaseException | None]) -> None:
        try:
            while segments and not self._abort.is_set():
                try:
                    segment = segments.popleft()
                except IndexError:
                    break
                cursor = _Cursor(segment, segment.start)
                self._policy.run(lambda cursor=cursor: self._stream_into(cursor))  # type: ignore[misc]
        except BaseException as error:
            outcomes.put(error)
        else:
            outcomes.put(None)

    def _stream_into(self, cursor: _Cursor) -> None:
        remote = self._remote
        if self._abort.is_set():
            raise StoppedError("stopped; the next run goes on from here.")
        if not remote.ranges:
            # Nothing in between can be asked for, so each attempt starts over.
            cursor.position, cursor.block_crc32 = 0, 0
            self._progress.restarted(0)
            if not self._digest_is_known:
                self._partial.reset()
        check_etag = not self._digest_is_known
        try:
            with self._client.stream(remote, cursor.position, cursor.segment.end, check_etag) as chunks:
                for chunk in chunks:
                    if self._stop.is_set() or self._abort.is_set():
                        raise StoppedError("stopped; the next run goes on from here.")
                    if cursor.position == 0 and not looks_like_gguf(chunk) and len(chunk) >= 4:
                        raise CorruptError(
                            f"the source sends something else than GGUF (it starts with {chunk[:16]!r}); check its address."
                        )
                    self._store(cursor, chunk)
        except ExpiredError:
            self._refresh(remote)
            raise

    def _store(self, cursor: _Cursor, chunk: bytes) -> None:
        """Writes a chunk and records each block that it completes."""
        view = memoryview(chunk)
        while view:
            block = cursor.position // BLOCK_BYTES
            block_end = min((block + 1) * BLOCK_BYTES, self._partial.size_bytes)
            piece = view[: block_end - cursor.position]
            self._partial.write(cursor.position, piece)
            cursor.block_crc32 = zlib.crc32(piece, cursor.block_crc32)
            cursor.position += len(piece)
            self._progress.received(len(piece))
            if cursor.position == block_end:
                self._partial.complete(block, cursor.block_crc32)
                cursor.block_crc32 = 0
            view = view[len(piece) :]

    def _refresh(self, expired: RemoteFile) -> None:
        """Resolves the origin once, however many connections met the expired address."""
        with self._remote_lock:
            if self._remote is expired:
                self._remote = self._client.refresh(expired)
