"""The digest of a file that is still arriving, computed from disk while the rest is fetched."""

from __future__ import annotations

import hashlib
import threading

from nlocalmodels_downloader.errors import StoppedError
from nlocalmodels_downloader.partial import Partial
from nlocalmodels_downloader.segments import BLOCK_BYTES, num_blocks


class TrailingHash:
    """Follows the blocks that are complete from the start on, in a thread of its own.

    It reads what is on disk, not what came over the network, so the digest is that of the file that will be published. After a
    restart it hashes what an earlier run left while the rest is fetched; a block that is not what the journal says is
    forgotten, and so fetched again.
    """

    def __init__(self, partial: Partial) -> None:
        self._partial = partial
        self._closed = threading.Event()
        self._digest: str | None = None
        self._error: BaseException | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hash", daemon=True)
        self._thread.start()

    def wait(self, stop: threading.Event) -> str | None:
        """Returns the digest, or None as soon as a block is missing, for it must be fetched before there can be one.

        Raises:
            StoppedError: the stop event was set meanwhile.
        """
        while not self._done.wait(0.05):
            if stop.is_set():
                raise StoppedError("stopped while verifying; the next run goes on from here.")
            if self._partial.missing_blocks():
                return None
        if self._error is not None:
            raise self._error
        return self._digest

    def close(self) -> None:
        """Ends the thread. Must come before the partial is closed."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                digest = self._follow()
                if digest is not None:
                    self._digest = digest
                    break
        except BaseException as error:
            self._error = error
        self._done.set()

    def _follow(self) -> str | None:
        """Hashes from the start to the end; None when the partial was reset on the way, or at the end of this object."""
        digest = hashlib.sha256()
        generation = self._partial.generation
        buffer = memoryview(bytearray(BLOCK_BYTES))
        block = 0
        while block < num_blocks(self._partial.size_bytes):
            data = self._partial.read_complete(block, buffer, timeout_seconds=0.1)
            if self._closed.is_set() or self._partial.generation != generation:
                return None
            if data is not None:
                digest.update(data)
                block += 1
        return digest.hexdigest() if self._partial.generation == generation else None
