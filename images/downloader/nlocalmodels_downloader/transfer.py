"""Brings every missing block of one file into its partial, over as many connections as pay, and computes its digest."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace

from nlocalmodels_downloader import checksum
from nlocalmodels_downloader.clients import Client, RemoteFile
from nlocalmodels_downloader.connections import Crew
from nlocalmodels_downloader.errors import CorruptError, ExpiredError, RangeError, StoppedError, TransientError
from nlocalmodels_downloader.gguf import looks_like_gguf
from nlocalmodels_downloader.hashing import TrailingHash
from nlocalmodels_downloader.partial import Partial
from nlocalmodels_downloader.progress import ModelProgress
from nlocalmodels_downloader.retry import RetryPolicy, run_until
from nlocalmodels_downloader.segments import BLOCK_BYTES, Budget, Segment, SegmentQueue, runs

log = logging.getLogger(__name__)

_TICK_SECONDS = 0.1
# How many ticks a stop waits for connections that have not had an answer yet.
_NUM_TICKS_AFTER_STOP = 10


@dataclass(frozen=True, slots=True)
class TransferOptions:
    """What all transfers of a run share. `max_connections` is per file."""

    max_connections: int
    num_attempts: int
    budget: Budget
    stop: threading.Event


@dataclass(slots=True)
class _Cursor:
    """Where a segment's stream stands. It outlives a broken connection, so no byte is asked for twice within a run."""

    segment: Segment
    position: int
    segments: SegmentQueue
    block_crc32: int = 0
    recorded_bytes: int = 0


class Transfer:
    """One file's way from a source into a partial."""

    def __init__(
        self,
        client: Client,
        remote: RemoteFile,
        partial: Partial,
        progress: ModelProgress,
        options: TransferOptions,
        digest_is_known: bool = True,
    ) -> None:
        self._client = client
        self._remote = remote
        self._partial = partial
        self._progress = progress
        self._options = options
        self._stop = options.stop
        self._abort = threading.Event()
        self._digest_is_known = digest_is_known
        self._probe_policy = RetryPolicy(options.num_attempts, progress.furthest_bytes, self._stop, progress.retrying)
        # Waits on the abort, so that one connection's final failure ends the others' waits, too.
        self._policy = RetryPolicy(options.num_attempts, progress.furthest_bytes, self._abort, progress.retrying)
        self._remote_lock = threading.Lock()

    def run(self) -> str:
        """Returns the sha256 of what is on disk when no block is missing.

        Raises:
            DownloaderError: what stopped it; all complete blocks are kept.
        """
        trailing = TrailingHash(self._partial)
        try:
            while True:
                while self._partial.missing_blocks():
                    try:
                        self._fetch_missing()
                    except RangeError as error:
                        self._look_again(error)
                digest = trailing.wait(self._stop)
                if digest is not None:
                    return digest
        finally:
            trailing.close()

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
        """Runs connections until nothing is missing, one fails for good, or the stop event is set."""
        size_bytes = self._partial.size_bytes
        if self._remote.ranges:
            segments = SegmentQueue(runs(self._partial.missing_blocks(), size_bytes), self._options.budget)
            max_connections = self._options.max_connections
        else:
            # Nothing in between can be asked for: one stream, which no budget can bound.
            segments, max_connections = SegmentQueue([Segment(0, size_bytes)], None), 1
        self._abort.clear()
        self._progress.restarted(self._partial.complete_bytes)
        crew = self._crew = Crew(lambda number: self._work(segments, number), max_connections)
        crew.start()
        first_error: BaseException | None = None
        num_ticks_left = _NUM_TICKS_AFTER_STOP
        while crew.num_running:
            outcome = crew.tick(self._progress.total_bytes(), _TICK_SECONDS)
            if outcome is not None and first_error is None:
                first_error = outcome
            if first_error is not None or self._stop.is_set():
                self._abort.set()
                self._client.abort()
            if self._stop.is_set():
                num_ticks_left -= 1
                if num_ticks_left == 0:
                    # The rest wait for a connection or a first byte; they will find a closed partial.
                    break
        if self._stop.is_set():
            raise StoppedError("stopped; the next run goes on from here.")
        if first_error is not None:
            raise first_error

    def _work(self, segments: SegmentQueue, num_connections: int) -> bool:
        """Fetches one segment; False when there was none to take."""
        segment = None if self._abort.is_set() else segments.take(num_connections)
        if segment is None:
            return not (self._abort.is_set() or segments.is_empty or self._abort.wait(0.02))
        cursor = _Cursor(segment, segment.start, segments)
        try:
            self._policy.run(lambda: self._stream_into(cursor))
        finally:
            segments.give_back(segment.num_bytes - cursor.recorded_bytes)
        return True

    def _stream_into(self, cursor: _Cursor) -> None:
        self._client.wait_until_welcome(self._remote, self._abort.is_set)
        remote = self._remote
        if self._abort.is_set():
            raise StoppedError("stopped; the next run goes on from here.")
        if not remote.ranges:
            # Nothing in between can be asked for, so each attempt starts over.
            cursor.position, cursor.block_crc32 = 0, 0
            self._progress.restarted(0)
            self._partial.reset()
        check_etag = not self._digest_is_known
        try:
            with self._client.stream(remote, cursor.position, cursor.segment.end, check_etag) as chunks:
                for chunk in chunks:
                    if self._stop.is_set() or self._abort.is_set():
                        raise StoppedError("stopped; the next run goes on from here.")
                    if cursor.position == 0 and not looks_like_gguf(chunk) and len(chunk) >= 4:
                        raise CorruptError(
                            f"the source sends something else than GGUF (it starts with {bytes(chunk[:16])!r}); "
                            "check its address."
                        )
                    self._store(cursor, chunk)
        except ExpiredError:
            self._refresh(remote)
            raise
        except TransientError as error:
            if error.retry_after_seconds is not None:
                self._crew.back_off()
            raise

    def _store(self, cursor: _Cursor, chunk: memoryview) -> None:
        """Writes a chunk and records each block that it completes."""
        view = chunk
        while view:
            block = cursor.position // BLOCK_BYTES
            block_end = min((block + 1) * BLOCK_BYTES, self._partial.size_bytes)
            piece = view[: block_end - cursor.position]
            self._partial.write(cursor.position, piece)
            cursor.block_crc32 = checksum.crc32(piece, cursor.block_crc32)
            cursor.position += len(piece)
            self._progress.received(len(piece))
            if cursor.position == block_end:
                self._partial.complete(block, cursor.block_crc32)
                self._record(cursor, block_end - block * BLOCK_BYTES)
            view = view[len(piece) :]

    @staticmethod
    def _record(cursor: _Cursor, num_bytes: int) -> None:
        cursor.block_crc32 = 0
        # A whole stream that starts over records its blocks again.
        if cursor.recorded_bytes + num_bytes <= cursor.segment.num_bytes:
            cursor.recorded_bytes += num_bytes
            cursor.segments.give_back(num_bytes)

    def _refresh(self, expired: RemoteFile) -> None:
        """Resolves the origin once, however many connections met the expired address."""
        with self._remote_lock:
            if self._remote is expired:
                self._remote = self._client.refresh(expired)
