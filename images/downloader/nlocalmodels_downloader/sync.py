"""Brings the volume to what the config declares: resolve, plan, fetch, verify, publish."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from dataclasses import dataclass, replace
from enum import Enum

from nlocalmodels_downloader.config import Config, Model
from nlocalmodels_downloader.errors import CorruptError, DownloaderError, RefusedError, SpaceError, StoppedError
from nlocalmodels_downloader.gguf import check_gguf
from nlocalmodels_downloader.http_client import HttpClient, RemoteFile
from nlocalmodels_downloader.manifest import ManifestEntry, write_manifest
from nlocalmodels_downloader.partial import Partial, naming_space_errors
from nlocalmodels_downloader.progress import ModelProgress, human_bytes
from nlocalmodels_downloader.retry import RetryPolicy, run_until
from nlocalmodels_downloader.settings import Settings
from nlocalmodels_downloader.transfer import Transfer
from nlocalmodels_downloader.volume import Verified, Volume, sha256_of

log = logging.getLogger(__name__)


class Action(Enum):
    """What a model needs."""

    KEEP = "present and verified"
    VERIFY = "present, to be verified"
    FETCH = "to be fetched"


@dataclass(frozen=True, slots=True)
class Failure:
    model: Model
    error: DownloaderError


def plan_model(volume: Volume, model: Model) -> Action:
    """Decides from the volume alone, without a network call."""
    verified = volume.verified(model.file)
    if verified is not None and _is_declared(verified, model):
        return Action.KEEP
    path = volume.path(model.file)
    # Without a declared digest there is nothing to verify a found file against.
    if model.sha256 is not None and path.is_file() and path.stat().st_size == (model.size_bytes or path.stat().st_size):
        return Action.VERIFY
    return Action.FETCH


def _is_declared(verified: Verified, model: Model) -> bool:
    if model.sha256 is not None:
        return verified.sha256 == model.sha256
    return model.source.is_pinned and verified.source == str(model.source)


class Synchronizer:
    """Carries out a sync. One model's failure leaves the others to be done."""

    def __init__(self, config: Config, settings: Settings, stop: threading.Event) -> None:
        self._config = config
        self._settings = settings
        self._stop = stop
        self._volume = Volume(config.model_path, settings.owner)
        self._client = HttpClient(
            settings.connect_timeout_seconds, settings.stall_seconds, settings.hub_token, settings.hub_endpoint
        )

    def run(self) -> list[Failure]:
        """Returns the models that failed. With none, the set's manifest has been written.

        Raises:
            StoppedError: SIGTERM or SIGINT; what has arrived is kept.
        """
        self._check_root()
        with naming_space_errors(self._volume.root):
            return self._run()

    def _run(self) -> list[Failure]:
        entries: list[ManifestEntry] = []
        failures: list[Failure] = []
        try:
            for model in self._config.models:
                try:
                    with naming_space_errors(self._volume.root):
                        entries.append(self._bring(model))
                except StoppedError:
                    raise
                except DownloaderError as error:
                    log.error("%s: %s", model.id, error)
                    failures.append(Failure(model, error))
            if not failures:
                self._volume.discard_partials()
                identity = write_manifest(self._volume.state / "sets", entries)
                log.info("set %s is complete: %s", identity, ", ".join(entry.id for entry in entries) or "no models")
        finally:
            self._volume.close()
        return failures

    def _check_root(self) -> None:
        try:
            self._volume.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SpaceError(f"modelPath {self._volume.root}: cannot be created ({error.strerror}); mount a volume.") from None

    def _bring(self, model: Model) -> ManifestEntry:
        digest = self._digest_on_volume(model)
        if digest is not None:
            log.info("%s: %s is present and verified, nothing to fetch", model.id, model.file)
        else:
            digest = self._fetch(model)
        return ManifestEntry(model.id, model.file, digest, self._volume.path(model.file).stat().st_size)

    def _digest_on_volume(self, model: Model) -> str | None:
        """Returns the digest of a file that is there and as declared, None if it has to be fetched."""
        action = plan_model(self._volume, model)
        if action is Action.KEEP and (verified := self._volume.verified(model.file)) is not None:
            return verified.sha256
        if action is not Action.VERIFY:
            return None
        log.info("%s: %s is there, verifying its digest", model.id, model.file)
        path = self._volume.path(model.file)
        digest = sha256_of(path, self._stop)
        if digest != model.sha256:
            log.warning("%s: %s on the volume is another file (sha256 %s); fetching", model.id, model.file, digest)
            return None
        check_gguf(path, model.file)
        self._volume.record_verified(model.file, Verified(digest, str(model.source)))
        return digest

    def _fetch(self, model: Model) -> str:
        remote, sha256 = self._resolve(model)
        assert remote.size_bytes is not None
        key = sha256 or hashlib.sha256(f"{model.source} {remote.size_bytes} {remote.etag}".encode()).hexdigest()
        partial = Partial(self._volume.workspace(), key, remote.size_bytes, None if sha256 else remote.etag)
        try:
            if sha256 is None and remote.etag is None:
                # Nothing tells whether what an earlier run left is of the same version.
                partial.reset()
            self._check_space(model, partial)
            for attempt in (1, 2):
                self._transfer(model, remote, partial, digest_is_known=sha256 is not None)
                log.info("%s: all bytes are there, verifying", model.id)
                digest = sha256_of(partial.data_path, self._stop)
                if sha256 in (None, digest):
                    break
                # Either bytes of two versions met in one file, which a fresh start mends, or the source is wrong.
                partial.reset()
                if attempt == 2:
                    raise CorruptError(
                        f"{model.source} has sha256 {digest}, but {sha256} is declared; correct the digest or the source."
                    )
                log.warning("%s: sha256 is %s instead of %s; starting once more from zero", model.id, digest, sha256)
            self._check_is_gguf(model, partial)
            self._volume.publish(partial.data_path, model.file, Verified(digest, str(model.source)))
        finally:
            partial.close()
        partial.discard()
        log.info("%s: %s is published, sha256 %s", model.id, model.file, digest)
        return digest

    def _resolve(self, model: Model) -> tuple[RemoteFile, str | None]:
        """Returns where the bytes are and the digest they must have, None for unverified ones that were allowed."""
        url = model.source.url(self._settings.hub_endpoint)
        policy = RetryPolicy(self._settings.num_attempts, lambda: 0, self._stop, ModelProgress(model.id, 0, 0).retrying)
        remote = policy.run(lambda: run_until(self._stop, lambda: self._client.probe(url)))
        size_bytes = model.size_bytes or remote.size_bytes
        if size_bytes is None:
            raise RefusedError(f"{model.source} does not state its size; declare sizeBytes.")
        if remote.size_bytes not in (None, size_bytes):
            raise CorruptError(
                f"{model.source} has {remote.size_bytes} bytes, but sizeBytes declares {size_bytes}; correct one of them."
            )
        remote = replace(remote, size_bytes=size_bytes)
        if model.sha256 is not None:
            return remote, model.sha256
        if model.source.is_pinned and remote.linked_sha256 and remote.commit in (None, model.source.revision):
            log.info("%s: the hub states sha256 %s for this commit", model.id, remote.linked_sha256)
            return remote, remote.linked_sha256
        if self._config.allow_unverified:
            log.warning("%s: no digest is known for %s; it is taken UNVERIFIED, as allowed", model.id, model.source)
            # Without a validator either, one stream is all that is sure to be of one version.
            return replace(remote, ranges=remote.ranges and remote.etag is not None), None
        if model.source.is_hub and remote.commit:
            raise RefusedError(
                f"{model.source}: revision '{model.source.revision}' can move; "
                f"name the commit @{remote.commit} or declare sha256."
            )
        raise RefusedError(f"{model.source}: no digest to verify it by; declare sha256, or set allowUnverified: true.")

    def _transfer(self, model: Model, remote: RemoteFile, partial: Partial, digest_is_known: bool) -> None:
        resumed_bytes = partial.complete_bytes
        progress = ModelProgress(model.id, partial.size_bytes, resumed_bytes)
        if resumed_bytes:
            log.info("%s: going on at %s of %s", model.id, human_bytes(resumed_bytes), human_bytes(partial.size_bytes))
        else:
            log.info("%s: fetching %s from %s", model.id, human_bytes(partial.size_bytes), model.source)
        started = time.monotonic()
        with progress.reported_every(self._settings.progress_seconds):
            Transfer(
                self._client,
                remote,
                partial,
                progress,
                self._stop,
                self._settings.num_connections,
                self._settings.num_attempts,
                digest_is_known,
            ).run()
        seconds = max(time.monotonic() - started, 1e-3)
        log.info(
            "%s: fetched %s in %.1f s (%s/s, %d retries)",
            model.id,
            human_bytes(progress.total_bytes()),
            seconds,
            human_bytes(progress.total_bytes() / seconds),
            progress.num_retries,
        )

    def _check_space(self, model: Model, partial: Partial) -> None:
        missing_bytes = partial.size_bytes - partial.complete_bytes
        free_bytes = self._volume.free_bytes()
        if missing_bytes > free_bytes:
            raise SpaceError(
                f"{model.file} needs {missing_bytes} bytes more, but {self._volume.root} has {free_bytes} free; "
                f"enlarge the volume by at least {human_bytes(missing_bytes - free_bytes)}."
            )

    def _check_is_gguf(self, model: Model, partial: Partial) -> None:
        partial.finish()
        try:
            check_gguf(partial.data_path, model.file)
        except CorruptError:
            partial.reset()
            raise
