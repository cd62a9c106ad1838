"""From a declared source to bytes that can be asked for, and the digest they must have."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from nlocalmodels_downloader import retry
from nlocalmodels_downloader.bandwidth import Throttle
from nlocalmodels_downloader.clients import Client, RemoteFile
from nlocalmodels_downloader.config import Model
from nlocalmodels_downloader.errors import CorruptError, RefusedError
from nlocalmodels_downloader.http_client import HttpClient
from nlocalmodels_downloader.local_client import LocalClient
from nlocalmodels_downloader.oci_client import OciClient
from nlocalmodels_downloader.pauses import Pauses
from nlocalmodels_downloader.progress import ModelProgress
from nlocalmodels_downloader.retry import RetryPolicy, run_until
from nlocalmodels_downloader.s3_client import S3Client
from nlocalmodels_downloader.settings import Settings
from nlocalmodels_downloader.sources import Source
from nlocalmodels_downloader.transfer import TransferOptions

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Resolved:
    """`sha256` is None only for bytes that were allowed to be unverified. `remote.size_bytes` is known."""

    client: Client
    remote: RemoteFile
    sha256: str | None


class Resolver:
    """Knows the clients. One for a whole run, so that they share connections and what hosts asked for."""

    def __init__(self, settings: Settings, options: TransferOptions, allow_unverified: bool) -> None:
        self._settings = settings
        self._options = options
        self._allow_unverified = allow_unverified
        limit = settings.max_bytes_per_second
        pauses = Pauses(lambda: retry.MAX_RETRY_AFTER_SECONDS)
        throttle = Throttle(limit, options.stop) if limit is not None else None

        def http(authorization: str | None, authorized_origin: str | None) -> HttpClient:
            timeouts = (settings.connect_timeout_seconds, settings.stall_seconds)
            return HttpClient(*timeouts, authorization, authorized_origin, throttle, pauses)

        self._http = http(f"Bearer {settings.hub_token}" if settings.hub_token else None, settings.hub_endpoint)
        self._s3 = S3Client(self._http, settings.s3_endpoint, settings.s3_region)
        self._oci = OciClient(http, settings.docker_config, settings.plain_http_registries)
        self._local = LocalClient()

    def resolve(self, file: Model, source: Source, known_sha256: str | None) -> Resolved:
        """Asks the source what it has, and judges whether that is what was declared.

        Args:
            known_sha256: a digest that an earlier source of the same file stated; a declared one goes before it.

        Raises:
            DownloaderError: this source will not do; another may.
        """
        if self._settings.is_offline and not source.is_local:
            raise RefusedError(
                f"{file.file} is not on the volume as declared, and DOWNLOAD_OFFLINE=true keeps {source} from being asked; "
                "put the file there, name a file:// mirror, or set DOWNLOAD_OFFLINE=false."
            )
        client = self._client(source)
        url = source.url(self._settings.hub_endpoint)
        stop = self._options.stop
        policy = RetryPolicy(self._options.num_attempts, lambda: 0, stop, ModelProgress(file.id, 0, 0).retrying)
        remote = policy.run(lambda: run_until(stop, lambda: client.probe(url)))
        size_bytes = file.size_bytes or remote.size_bytes
        if size_bytes is None:
            raise RefusedError(f"{source} does not state its size; declare sizeBytes.")
        if remote.size_bytes not in (None, size_bytes):
            raise CorruptError(
                f"{source} has {remote.size_bytes} bytes, but sizeBytes declares {size_bytes}; correct one of them."
            )
        return self._judge(file, source, client, replace(remote, size_bytes=size_bytes), file.sha256 or known_sha256)

    def _client(self, source: Source) -> Client:
        if source.is_local:
            return self._local
        if source.is_oci:
            return self._oci
        return self._s3 if source.is_s3 else self._http

    def _judge(self, file: Model, source: Source, client: Client, remote: RemoteFile, sha256: str | None) -> Resolved:
        if sha256 is not None:
            if source.is_oci and remote.linked_sha256 != sha256:
                raise CorruptError(
                    f"{source} holds sha256 {remote.linked_sha256}, but {sha256} is declared; correct one of them."
                )
            return Resolved(client, remote, sha256)
        if source.is_pinned and remote.linked_sha256 and (source.is_oci or remote.commit in (None, source.revision)):
            log.info("%s: sha256 %s is what the source states under this pinned name", file.id, remote.linked_sha256)
            return Resolved(client, remote, remote.linked_sha256)
        if self._allow_unverified:
            log.warning("%s: no digest is known for %s; it is taken UNVERIFIED, as allowed", file.id, source)
            # Without a validator either, one stream is all that is sure to be of one version.
            return Resolved(client, replace(remote, ranges=remote.ranges and remote.etag is not None), None)
        if source.is_oci:
            raise RefusedError(f"{source}: a tag can move; name the manifest @{remote.commit} or declare sha256.")
        if source.is_hub and remote.commit:
            raise RefusedError(
                f"{source}: revision '{source.revision}' can move; name the commit @{remote.commit} or declare sha256."
            )
        raise RefusedError(f"{source}: no digest to verify it by; declare sha256, or set allowUnverified: true.")
