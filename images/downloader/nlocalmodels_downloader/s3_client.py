"""s3:// sources: botocore signs addresses, and the bytes come through the HTTP client like all others."""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from nlocalmodels_downloader.clients import Client, RemoteFile
from nlocalmodels_downloader.errors import DeniedError, GoneError, RefusedError, TransientError
from nlocalmodels_downloader.sources import split_s3

log = logging.getLogger(__name__)

# Long enough for most files. When it is over, or the credentials end before, the address is signed again.
_EXPIRES_SECONDS = 3600
_DEFAULT_REGION = "us-east-1"


class S3Client:
    """Reads objects by presigned addresses (AWS Signature Version 4, query parameters).

    Credentials are found as by every AWS client: environment, web identity, shared files, container or instance. Without any,
    the address is not signed, which public buckets take.

    Args:
        http: reads what was signed.
        endpoint: of another store than Amazon's. Buckets are then named in its path, not in its host.
        region: goes before the one of the AWS settings.
    """

    def __init__(self, http: Client, endpoint: str | None, region: str | None) -> None:
        self._http = http
        self._endpoint = endpoint
        self._region = region
        self._lock = threading.Lock()
        self._signer: _Signer | None = None

    def probe(self, url: str) -> RemoteFile:
        """Raises RefusedError without botocore, and whatever the HTTP client raises."""
        signed = self._sign(*split_s3(url))
        try:
            return replace(self._http.probe(signed), origin_url=url)
        except DeniedError as error:
            raise DeniedError(
                f"{url}: {error} A store also answers so for a key that is not there; "
                "check credentials, policy, AWS_REGION and key."
            ) from None
        except GoneError as error:
            raise GoneError(f"{url}: {error} Check bucket, key and AWS_ENDPOINT_URL_S3.") from None
        except RefusedError as error:
            raise RefusedError(f"{url}: {error} A bucket of another region answers so, too: check AWS_REGION.") from None

    def wait_until_welcome(self, remote: RemoteFile, is_over: Callable[[], bool]) -> None:
        self._http.wait_until_welcome(remote, is_over)

    def refresh(self, remote: RemoteFile) -> RemoteFile:
        """Signs anew, for an address whose time is over."""
        return replace(remote, url=self.probe(remote.origin_url).url)

    def stream(
        self, remote: RemoteFile, start: int, end: int, check_etag: bool = False
    ) -> AbstractContextManager[Iterator[memoryview]]:
        return self._http.stream(remote, start, end, check_etag)

    def abort(self) -> None:
        self._http.abort()

    def _sign(self, bucket: str, key: str) -> str:
        with self._lock:
            if self._signer is None:
                self._signer = _Signer(self._endpoint, self._region)
            return self._signer.sign(bucket, key)


class _Signer:
    """botocore's S3 client. Only its signatures are used; it sends no request but for credentials."""

    def __init__(self, endpoint: str | None, region: str | None) -> None:
        """Raises RefusedError without botocore, or when the AWS settings are unusable."""
        self._has_endpoint = endpoint is not None
        try:
            core = importlib.import_module("botocore")
            session_module = importlib.import_module("botocore.session")
            config_module = importlib.import_module("botocore.config")
            self._exceptions = importlib.import_module("botocore.exceptions")
        except ImportError:
            raise RefusedError(
                "s3:// sources need botocore, which is not installed; take the image downloader-s3, "
                "or install requirements-s3.txt."
            ) from None
        try:
            session = session_module.get_session()
            is_anonymous = session.get_credentials() is None
            if is_anonymous:
                log.info("s3: no credentials were found, so addresses are not signed; only public objects can be read")
            region = region or session.get_config_variable("region") or _DEFAULT_REGION
            self._clients: dict[str, Any] = {}
            for style in ("path", "virtual"):
                config = config_module.Config(
                    signature_version=core.UNSIGNED if is_anonymous else "s3v4", s3={"addressing_style": style}
                )
                self._clients[style] = session.create_client("s3", region_name=region, endpoint_url=endpoint, config=config)
        except (self._exceptions.BotoCoreError, ValueError) as error:
            # Its text can name files and profiles, never a secret key.
            raise RefusedError(
                f"s3: the AWS settings cannot be used ({type(error).__name__}: {error}); correct them."
            ) from None

    def sign(self, bucket: str, key: str) -> str:
        """Raises TransientError when credentials cannot be had for the moment, DeniedError when they are refused."""
        # Every store knows paths. Amazon wants the bucket in the host, but has certificates for one name below its own only.
        style = "path" if self._has_endpoint or "." in bucket else "virtual"
        try:
            url: str = self._clients[style].generate_presigned_url(
                "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=_EXPIRES_SECONDS
            )
        except self._exceptions.ClientError as error:
            code = error.response.get("Error", {}).get("Code", "no code")
            raise DeniedError(
                f"s3: credentials for s3://{bucket}/{key} are refused ({code}); check the role, and who may assume it."
            ) from None
        except Exception as error:
            # Not only botocore's own: what answers in the place of a credentials' server can be anything.
            raise TransientError(f"s3: no credentials for s3://{bucket}/{key} ({type(error).__name__}).") from None
        return url
