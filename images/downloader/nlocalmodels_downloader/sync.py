"""Brings the volume to what the config declares: resolve, plan, fetch, verify, publish."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from nlocalmodels_downloader.config import Config, Model
from nlocalmodels_downloader.errors import DownloaderError, SpaceError, StoppedError
from nlocalmodels_downloader.fetch import MAX_LOSSES, Fetched, Fetcher
from nlocalmodels_downloader.gguf import check_gguf
from nlocalmodels_downloader.leftovers import discard_leftovers
from nlocalmodels_downloader.manifest import ManifestEntry, Shard, files_of_sets, write_manifest
from nlocalmodels_downloader.partial import naming_space_errors
from nlocalmodels_downloader.plan import Action, plan_file
from nlocalmodels_downloader.progress import human_bytes
from nlocalmodels_downloader.prune import apply_prune, plan_prune
from nlocalmodels_downloader.report import Board, Outcome
from nlocalmodels_downloader.resolve import Resolver
from nlocalmodels_downloader.segments import Budget
from nlocalmodels_downloader.settings import Settings
from nlocalmodels_downloader.transfer import TransferOptions
from nlocalmodels_downloader.volume import FOUND_ON_VOLUME, Verified, Volume, sha256_of

log = logging.getLogger(__name__)

# While one file's last bytes come and its digest is computed, another's connections are busy.
_NUM_MODELS_AT_ONCE = 2


@dataclass(frozen=True, slots=True)
class Failure:
    model: Model
    error: DownloaderError


class Synchronizer:
    """Carries out a sync. One model's failure leaves the others to be done."""

    def __init__(self, config: Config, settings: Settings, stop: threading.Event, board: Board | None = None) -> None:
        self._config = config
        self._stop = stop
        self._settings = settings
        self._board = board or Board([], settings.progress_seconds)
        self._volume = Volume(config.model_path, settings.owner)
        options = TransferOptions(settings.num_connections, settings.num_attempts, Budget(), stop)
        resolver = Resolver(settings, options, config.allow_unverified)
        self._fetcher = Fetcher(self._volume, resolver, settings, options, self._board.add)

    def run(self) -> list[Failure]:
        """Returns the models that failed. With none, the set's manifest has been written.

        Raises:
            StoppedError: SIGTERM or SIGINT; what has arrived is kept.
            SpaceError: the volume cannot hold what is declared, or cannot be used at all.
        """
        self._volume.create()
        with naming_space_errors(self._volume.root):
            try:
                self._check_space()
                return self._run()
            finally:
                self._volume.close()

    def _run(self) -> list[Failure]:
        digests = [file.sha256 for model in self._config.models for file in model.files if file.sha256]
        # Files with the same bytes share a partial and a lease, so they must not be fetched side by side.
        num_at_once = _NUM_MODELS_AT_ONCE if len(set(digests)) == len(digests) else 1
        with ThreadPoolExecutor(num_at_once, thread_name_prefix="model") as pool:
            results = list(pool.map(self._bring_or_fail, self._config.models))
        failures = [result for result in results if isinstance(result, Failure)]
        stopped = [failure.error for failure in failures if isinstance(failure.error, StoppedError)]
        if stopped:
            raise stopped[0]
        if not failures:
            self._finish_set([result for result in results if isinstance(result, ManifestEntry)])
        return failures

    def _finish_set(self, entries: list[ManifestEntry]) -> None:
        self._volume.discard_partials()
        discard_leftovers(self._volume, {file.sha256 for entry in entries for file in entry.files})
        identity = write_manifest(self._volume.state / "sets", entries)
        log.info("set %s is complete: %s", identity, ", ".join(entry.id for entry in entries) or "no models")
        if self._config.prune_keep_sets is not None:
            declared = [file.file for model in self._config.models for file in model.files]
            freed_bytes = apply_prune(plan_prune(self._volume.root, self._config.prune_keep_sets, identity, declared))
            if freed_bytes:
                log.info("pruned what no kept set needs: %s are free again", human_bytes(freed_bytes))

    def _bring_or_fail(self, model: Model) -> ManifestEntry | Failure:
        try:
            with naming_space_errors(self._volume.root):
                return self._bring(model)
        except DownloaderError as error:
            if not isinstance(error, StoppedError):
                log.error("%s: %s", model.id, error)
                self._board.finish(model.id, Outcome.FAILED, str(error))
            return Failure(model, error)

    def _bring(self, model: Model) -> ManifestEntry:
        for _ in range(MAX_LOSSES):
            if (entry := self._bring_unless_lost(model)) is not None:
                return entry
            log.warning("%s: another process took this one for dead before its file was published; looking again", model.id)
        raise SpaceError(f"{model.file}: what is fetched is removed by others again and again; see who shares the volume.")

    def _bring_unless_lost(self, model: Model) -> ManifestEntry | None:
        """Fetches what is missing of a model, then publishes it; the first shard last, since it is what the server loads.

        None when another process removed what was about to be published, most likely since it has published it itself.
        """
        if self._stop.is_set():
            raise StoppedError("stopped; the next run goes on from here.")
        with ExitStack() as held:
            digests: dict[str, str] = {}
            fetched: list[Fetched] = []
            for file in model.files:
                digest = self._digest_on_volume(file)
                if digest is None:
                    fetched.append(self._fetcher.fetch(file, held))
                    digest = fetched[-1].verified.sha256
                digests[file.file] = digest
            if not all(self._publish(one) for one in reversed(fetched)):
                return None
        shards = tuple(Shard(file.file, digests[file.file], self._size(file)) for file in model.shards)
        if not fetched:
            log.info("%s: %s is present and verified, nothing to fetch", model.id, model.file)
            size_bytes = sum(self._size(file) for file in model.files)
            self._board.add(model.id, size_bytes, size_bytes)
        self._board.finish(model.id, Outcome.FETCHED if fetched else Outcome.KEPT)
        return ManifestEntry(model.id, model.file, digests[model.file], self._size(model), shards)

    def _publish(self, fetched: Fetched) -> bool:
        """Returns False when the file has neither been published now nor before, and is lost."""
        if fetched.partial is None:
            return True
        file = fetched.file
        if (there := self._volume.verified(file.file)) is not None and there.sha256 == fetched.verified.sha256:
            # Where locks lie, whoever has published it may remove what this process has.
            fetched.partial.discard()
            return True
        self._keep_former(file.file, fetched.verified.sha256)
        is_published = self._volume.publish(fetched.partial.data_path, file.file, fetched.verified, self._settings.is_durable)
        fetched.partial.discard()
        if is_published:
            log.info("%s: %s is published, sha256 %s", file.id, file.file, fetched.verified.sha256)
        return is_published

    def _digest_on_volume(self, file: Model) -> str | None:
        """Returns the digest of a file that is there and as declared, None if it has to be fetched."""
        action = plan_file(self._volume, file)
        if action is Action.KEEP and (verified := self._volume.verified(file.file)) is not None:
            return verified.sha256
        if action is not Action.VERIFY:
            return None
        if self._bring_back(file):
            return file.sha256
        # What was kept may have been all that there was to verify, and it is gone.
        if plan_file(self._volume, file) is not Action.VERIFY:
            return None
        log.info("%s: %s is there, verifying its digest", file.id, file.file)
        path = self._volume.path(file.file)
        digest = sha256_of(path, self._stop)
        recorded = self._volume.recorded(file.file)
        if digest != (file.sha256 or (recorded.sha256 if recorded else None)):
            log.warning("%s: %s on the volume is another file (sha256 %s); fetching", file.id, file.file, digest)
            return None
        check_gguf(path, file.file)
        source = recorded.source if recorded is not None else FOUND_ON_VOLUME
        self._volume.record_verified(file.file, Verified(digest, source), self._settings.is_durable)
        return digest

    def _bring_back(self, file: Model) -> bool:
        """Gives a content its name again that it had in a set before; whether there was one, and it is still what it was."""
        path = self._volume.former.find(file.sha256, file.size_bytes)
        if path is None:
            return False
        log.info("%s: %s is kept from an earlier set, verifying its digest", file.id, file.file)
        digest = sha256_of(path, self._stop)
        if digest != file.sha256:
            log.warning("%s: what was kept of %s has sha256 %s now; it is dropped", file.id, file.file, digest)
            path.unlink()
            return False
        self._keep_former(file.file, digest)
        return self._volume.publish(path, file.file, Verified(digest, str(file.source)), self._settings.is_durable)

    def _keep_former(self, file: str, next_sha256: str) -> None:
        """Keeps what a name means now, if a set on the volume needs it and there is to be more than the current one."""
        recorded = self._volume.recorded(file)
        if recorded is None or recorded.source == FOUND_ON_VOLUME or recorded.sha256 == next_sha256:
            return
        if self._config.prune_keep_sets != 1 and (file, recorded.sha256) in files_of_sets(self._volume.state / "sets"):
            self._volume.former.keep(self._volume.path(file), recorded.sha256)

    def _size(self, file: Model) -> int:
        return self._volume.path(file.file).stat().st_size

    def _check_space(self) -> None:
        """Refuses a set that cannot fit before a byte of it is fetched."""
        missing_bytes = sum(
            max(0, (file.size_bytes or 0) - self._volume.workspaces.present_bytes(file.sha256))
            for model in self._config.models
            for file in model.files
            if plan_file(self._volume, file) is Action.FETCH
        )
        limit_bytes = self._settings.volume_limit_bytes
        try:
            self._volume.require_space(missing_bytes, "the declared models need", limit_bytes)
        except SpaceError:
            # A rollback without a download is worth less than the set that is wanted now.
            declared = {file.sha256 for model in self._config.models for file in model.files if file.sha256}
            if not (freed_bytes := self._volume.former.discard(declared)):
                raise
            log.warning("%s of earlier sets make room for what is declared", human_bytes(freed_bytes))
            self._volume.require_space(missing_bytes, "the declared models need", limit_bytes)
