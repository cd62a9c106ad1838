"""One file's way from its sources to bytes that are verified and ready to be published."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from nlocalmodels_downloader.config import Model
from nlocalmodels_downloader.errors import CorruptError, DownloaderError, SpaceError, StoppedError
from nlocalmodels_downloader.gguf import check_gguf
from nlocalmodels_downloader.lease import Lease, Turn, wait_for_turn
from nlocalmodels_downloader.partial import Partial
from nlocalmodels_downloader.progress import ModelProgress, human_bytes
from nlocalmodels_downloader.resolve import Resolved, Resolver
from nlocalmodels_downloader.settings import Settings
from nlocalmodels_downloader.sources import Source
from nlocalmodels_downloader.transfer import Transfer, TransferOptions
from nlocalmodels_downloader.volume import Verified, Volume

log = logging.getLogger(__name__)

MAX_LOSSES = 5

Add = Callable[[str, int, int, str], ModelProgress]


@dataclass(frozen=True, slots=True)
class Fetched:
    """A verified file that has no name yet. `partial` is None when another process has published it meanwhile."""

    file: Model
    verified: Verified
    partial: Partial | None


class Fetcher:
    """Fetches files over the sources they have.

    Args:
        add: begins a file's progress: model id, size, bytes that are there already, file name.
    """

    def __init__(self, volume: Volume, resolver: Resolver, settings: Settings, options: TransferOptions, add: Add) -> None:
        self._volume = volume
        self._resolver = resolver
        self._settings = settings
        self._options = options
        self._add = add
        self._locks: dict[str, threading.Lock] = {}
        self._locks_lock = threading.Lock()

    def fetch(self, file: Model, held: ExitStack) -> Fetched:
        """Fetches from the first source that has the file, and goes on where another one failed.

        Args:
            held: keeps the lease and the partial until the caller has published the file.

        Raises:
            DownloaderError: no source has it; the last one's reason, and the others in the log.
        """
        known_sha256: str | None = None
        for number, source in enumerate(file.sources, 1):
            try:
                resolved = self._resolver.resolve(file, source, known_sha256)
                known_sha256 = resolved.sha256
                for _ in range(MAX_LOSSES):
                    if (fetched := self._fetch_from(file, source, resolved, held)) is not None:
                        return fetched
                    log.warning("%s: another process took this one for dead and has what it had; going on", file.id)
                raise SpaceError(
                    f"{file.file}: what is fetched is removed by others again and again; see who shares the volume."
                )
            except (StoppedError, SpaceError):
                raise
            except DownloaderError as error:
                if number == len(file.sources):
                    raise
                log.warning("%s: %s Going on with the next source.", file.id, error)
        raise AssertionError("a model has at least one source")

    def _fetch_from(self, file: Model, source: Source, resolved: Resolved, held: ExitStack) -> Fetched | None:
        """Returns None when another process has taken over, and so removed, what was being fetched."""
        remote, sha256 = resolved.remote, resolved.sha256
        assert remote.size_bytes is not None
        key = sha256 or hashlib.sha256(f"{source} {remote.size_bytes} {remote.etag}".encode()).hexdigest()
        with ExitStack() as mine:
            # Two files with the same bytes would share a partial and a lease.
            mine.enter_context(self._lock(key))
            if sha256 is not None and not self._take_turn(file, key, mine):
                done = self._published(file, key)
                assert done is not None
                return Fetched(file, done, None)
            partial = Partial(self._volume.workspace(), key, remote.size_bytes, None if sha256 else remote.etag)
            mine.callback(partial.close)
            if sha256 is None and remote.etag is None:
                # Nothing tells whether what an earlier run left is of the same version.
                partial.reset()
            missing_bytes = partial.size_bytes - partial.complete_bytes
            self._volume.require_space(missing_bytes, f"{file.file} needs", self._settings.volume_limit_bytes)
            digest = self._transfer(file, source, resolved, partial)
            partial.finish(self._settings.is_durable)
            if sha256 is not None and (done := self._published(file, key)) is not None:
                # Somebody whom this process took for dead, or who did not wait for it, was faster.
                partial.discard()
                return Fetched(file, done, None)
            if not partial.is_named:
                return None
            try:
                check_gguf(partial.data_path, file.file)
            except CorruptError:
                partial.reset()
                raise
            held.enter_context(mine.pop_all())
        return Fetched(file, Verified(digest, str(source)), partial)

    def _published(self, file: Model, sha256: str) -> Verified | None:
        """Returns the record of a file that is there as declared, by whomever."""
        verified = self._volume.verified(file.file)
        return verified if verified is not None and verified.sha256 == sha256 else None

    def _lock(self, key: str) -> threading.Lock:
        with self._locks_lock:
            return self._locks.setdefault(key, threading.Lock())

    def _take_turn(self, file: Model, key: str, mine: ExitStack) -> bool:
        """Returns True when this process is to fetch the file, False when another one has published it."""
        workspace = self._volume.workspace()
        holder = workspace.name
        lease = Lease(self._volume.leases, key, holder, self._settings.lease_seconds, self._settings.lease_seconds / 9)

        turn = wait_for_turn(
            lease,
            lambda: self._published(file, key) is not None,
            self._options.stop,
            self._settings.lease_budget_seconds,
            lambda sentence: log.info("%s: %s", file.id, sentence),
        )
        if turn is Turn.MINE:
            data_path = workspace / f"{key}.data"
            # What the disk has of it is near enough to tell that it grows.
            mine.enter_context(lease.held(lambda: data_path.stat().st_blocks * 512 if data_path.exists() else 0))
            self._volume.workspaces.adopt(key, self._options.stop)
        elif turn is Turn.PRIVATE:
            # Whoever was waited for in vain may be dead by the time that this is done; its lease would stay for ever.
            mine.callback(lambda: lease.release() if lease.try_acquire() else None)
        return turn is not Turn.DONE

    def _transfer(self, file: Model, source: Source, resolved: Resolved, partial: Partial) -> str:
        """Fetches what is missing and returns the digest, after a fresh start if bytes of two versions met."""
        for attempt in (1, 2):
            resumed_bytes = partial.complete_bytes
            progress = self._add(file.id, partial.size_bytes, resumed_bytes, file.file)
            if resumed_bytes:
                size = human_bytes(partial.size_bytes)
                log.info("%s: going on at %s of %s from %s", file.id, human_bytes(resumed_bytes), size, source)
            else:
                log.info("%s: fetching %s from %s", file.id, human_bytes(partial.size_bytes), source)
            transfer = Transfer(resolved.client, resolved.remote, partial, progress, self._options, resolved.sha256 is not None)
            digest = transfer.run()
            if resolved.sha256 in (None, digest):
                return digest
            partial.reset()
            if attempt == 1 and (resumed_bytes or source == file.sources[-1]):
                log.warning("%s: sha256 is %s instead of %s; starting once more from zero", file.id, digest, resolved.sha256)
            else:
                break
        raise CorruptError(
            f"{source} has sha256 {digest}, but {resolved.sha256} is declared; correct the digest or the source."
        )
