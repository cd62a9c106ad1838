"""The only module that talks HTTP: one probe and one way to stream bytes, with every answer judged (RFC 9110)."""

from __future__ import annotations

import http.client
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace

import requests
import urllib3

from nlocalmodels_downloader import retry
from nlocalmodels_downloader.answers import (
    content_length,
    content_range,
    failure,
    reason,
    refuse_encoding,
    retry_after_seconds,
    strong_etag,
)
from nlocalmodels_downloader.bandwidth import Throttle
from nlocalmodels_downloader.bodies import read_body
from nlocalmodels_downloader.clients import RemoteFile
from nlocalmodels_downloader.errors import ExpiredError, RangeError, RefusedError, TransientError
from nlocalmodels_downloader.pauses import Pauses
from nlocalmodels_downloader.redirects import redirect_target
from nlocalmodels_downloader.sources import origin, redact

# What is handed on at a time: each piece costs Python the same, whatever its size, and larger ones leave a core's cache.
CHUNK_BYTES = 128 * 1024
MAX_HOLD_SECONDS = 1.0
MIN_BYTES_PER_SECOND = 1024
MAX_REDIRECTS = 10
_SHA256 = re.compile(r"[0-9a-f]{64}")


class HttpClient:
    """A connection pool per thread, since a requests session is not made to be shared.

    Args:
        connect_timeout_seconds: for a TCP and TLS handshake.
        stall_seconds: without a byte, or below `MIN_BYTES_PER_SECOND` over that time, a stream is broken off.
        authorization: a header's value, sent to `authorized_origin` only, never to where it redirects.
        throttle: holds up the reading of bodies.
        pauses: what hosts asked for, when other clients ask the same hosts.
    """

    def __init__(
        self,
        connect_timeout_seconds: float,
        stall_seconds: float,
        authorization: str | None = None,
        authorized_origin: str | None = None,
        throttle: Throttle | None = None,
        pauses: Pauses | None = None,
    ) -> None:
        self._timeout = (connect_timeout_seconds, stall_seconds)
        self._stall_seconds = stall_seconds
        self._authorization = authorization
        self._authorized_origin = origin(authorized_origin) if authorized_origin else None
        self._throttle = throttle
        self._piece_bytes = min(CHUNK_BYTES, throttle.piece_bytes) if throttle else CHUNK_BYTES
        self._local = threading.local()
        self._active: set[requests.Response] = set()
        self._pauses = pauses or Pauses(lambda: retry.MAX_RETRY_AFTER_SECONDS)

    def wait_until_welcome(self, remote: RemoteFile, is_over: Callable[[], bool]) -> None:
        """Returns when the file's host may be asked again, after it asked anybody to wait."""
        self._pauses.wait(origin(remote.url), is_over)

    def probe(self, url: str) -> RemoteFile:
        """Asks for the first byte: learns size, validator and whether ranges work.

        A HEAD would tell less: signed URLs are often good for GET alone, and only an answered range proves ranges.

        Raises:
            TransientError, DeniedError, GoneError, RefusedError: as `stream` does.
        """
        try:
            return self._probe(url, {"Range": "bytes=0-0"})
        except RangeError:
            # A garbled answer to a range says nothing of the file; the answer to a plain request may.
            return self._probe(url, {})

    def _probe(self, url: str, headers: dict[str, str]) -> RemoteFile:
        with self._get(url, headers, waits=True) as (response, final_url, origin_headers):
            if response.status_code == 206 and headers:
                total, ranges = content_range(response.headers, url, 0)[1], True
            elif response.status_code == 200:
                total, ranges = content_length(response.headers), False
            elif response.status_code == 416:
                total, ranges = 0, False
            else:
                raise failure(response.status_code, response.headers, url)
            if total == 0:
                raise RefusedError(f"{redact(url)} is empty; look whether the source holds the file.")
            refuse_encoding(response.headers, url)
            linked = (origin_headers.get("X-Linked-Etag") or "").strip('"')
            return RemoteFile(
                origin_url=url,
                url=final_url,
                size_bytes=total,
                etag=strong_etag(response.headers),
                ranges=ranges,
                linked_sha256=linked if _SHA256.fullmatch(linked) else None,
                commit=origin_headers.get("X-Repo-Commit"),
            )

    def read(self, url: str, headers: dict[str, str], max_bytes: int) -> tuple[int, Mapping[str, str], bytes]:
        """Returns status, headers and body of a small answer that is no file, such as a manifest. Other statuses are no error.

        Raises:
            TransientError: the connection broke, or the status is one that another attempt may not meet.
            RefusedError: the body is larger than `max_bytes`.
        """
        with self._get(url, headers, waits=True) as (response, _, _):
            if response.status_code == 429 or response.status_code >= 500:
                raise failure(response.status_code, response.headers, url)
            try:
                body: bytes = response.raw.read(max_bytes + 1, decode_content=True)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise TransientError(f"{redact(url)}: {reason(error)}.") from None
            if len(body) > max_bytes:
                raise RefusedError(f"{redact(url)} answered more than {max_bytes} bytes; check the address.")
            return response.status_code, response.headers, body

    def refresh(self, remote: RemoteFile) -> RemoteFile:
        """Resolves the origin again, for a signed URL that has expired."""
        return replace(remote, url=self.probe(remote.origin_url).url)

    @contextmanager
    def stream(self, remote: RemoteFile, start: int, end: int, check_etag: bool = False) -> Iterator[Iterator[memoryview]]:
        """Opens bytes `start` to `end` (exclusive) as chunks; for a source without ranges, `start` must be 0.

        Args:
            check_etag: for bytes that no digest will judge, holds the answer to the ETag of the probe.

        Raises:
            TransientError: worth another attempt, also when the stream ends early.
            RangeError: a range was asked and not answered as one of the same file.
            DeniedError, GoneError, RefusedError: no attempt will help.
        """
        headers = {"Range": f"bytes={start}-{end - 1}"} if remote.ranges else {}
        if remote.ranges and remote.etag and remote.if_range:
            headers["If-Range"] = remote.etag
        with self._get(remote.url, headers) as (response, _, _):
            if response.status_code == 206 and remote.ranges:
                found_start, total = content_range(response.headers, remote.url, start)
                if found_start != start or total not in (None, remote.size_bytes):
                    raise RangeError(f"{redact(remote.url)} answered another range than bytes {start} to {end - 1}.")
            elif response.status_code == 200:
                if remote.ranges:
                    raise RangeError(f"{redact(remote.url)} answered a range with the whole body.")
            elif response.status_code == 416 and remote.ranges:
                raise RangeError(f"{redact(remote.url)} has no bytes {start} to {end - 1}.")
            elif response.status_code in (400, 401, 403, 404, 410) and remote.url != remote.origin_url:
                raise ExpiredError(f"the signed address of {redact(remote.origin_url)} is refused ({response.status_code}).")
            else:
                raise failure(response.status_code, response.headers, remote.origin_url)
            refuse_encoding(response.headers, remote.url)
            if check_etag and remote.ranges and strong_etag(response.headers) != remote.etag:
                raise RangeError(f"{redact(remote.url)} now has another ETag than {remote.etag}.")
            yield self._chunks(response, end - start)

    def _chunks(self, response: requests.Response, num_bytes: int) -> Iterator[memoryview]:
        """Yields at most `num_bytes`, whatever the server sends beyond them. A chunk is good until the next one.

        Reads go past urllib3 into one buffer per thread: its own calls copy each TLS record several times. Bytes are handed on
        when the buffer is full, after a while, or when the connection breaks, so that none that came is lost.
        """
        body: http.client.HTTPResponse = response.raw._fp  # type: ignore[assignment]
        buffer = self._buffer()
        remaining, filled, yielded = num_bytes, 0, time.monotonic()
        window_start, window_bytes = yielded, 0
        problem: str | None = None
        while remaining and problem is None:
            until = min(yielded + MAX_HOLD_SECONDS, window_start + self._stall_seconds)
            length, error = read_body(body, buffer[filled : min(CHUNK_BYTES, remaining, filled + self._piece_bytes)], until)
            if error is not None:
                problem = f"the connection broke: {reason(error)}."
            elif length == 0:
                problem = f"the connection closed {remaining - filled} bytes early."
            filled += length
            window_bytes += length
            if self._throttle is not None and length:
                # Time that was waited for others is no stall of this connection.
                window_start += self._throttle.wait(length)
            now = time.monotonic()
            if now - window_start >= self._stall_seconds:
                if window_bytes < MIN_BYTES_PER_SECOND * (now - window_start):
                    problem = f"the connection stalled: {window_bytes} bytes in {now - window_start:.0f} s."
                window_start, window_bytes = now, 0
            if filled and (filled in (CHUNK_BYTES, remaining) or problem or now - yielded >= MAX_HOLD_SECONDS):
                remaining -= filled
                yield buffer[:filled]
                filled, yielded = 0, time.monotonic()
        if remaining:
            raise TransientError(problem or "the connection broke.")

    def _buffer(self) -> memoryview:
        buffer: memoryview | None = getattr(self._local, "buffer", None)
        if buffer is None:
            buffer = self._local.buffer = memoryview(bytearray(CHUNK_BYTES))
        return buffer

    def abort(self) -> None:
        """Ends every read of a body under way in other threads."""
        for response in list(self._active):
            _shut_down(response)

    @contextmanager
    def _get(
        self, url: str, headers: dict[str, str], waits: bool = False
    ) -> Iterator[tuple[requests.Response, str, requests.structures.CaseInsensitiveDict[str]]]:
        """Follows redirects by hand and yields the answer, its address and the headers of the last hop on `url`'s origin.

        Args:
            waits: asks no host that wants to be left alone for a while.
        """
        session = self._session()
        origin_headers = requests.structures.CaseInsensitiveDict[str]()
        start_url = url
        for _ in range(MAX_REDIRECTS + 1):
            # Identity: a coded body would make byte ranges and digests mean something else (RFC 9110 sections 8.4, 12.5.3).
            sent = {**headers, "Accept-Encoding": "identity", "User-Agent": "nlocalmodels-downloader"}
            if origin(url) != origin(start_url):
                sent.pop("Authorization", None)
            if self._authorization and origin(url) == self._authorized_origin:
                sent["Authorization"] = self._authorization
            if waits:
                self._pauses.wait(origin(url), lambda: False)
            try:
                response = session.get(
                    url, headers=sent, stream=True, allow_redirects=False, timeout=self._timeout, auth=_keep_netrc_out
                )
            except requests.exceptions.SSLError as error:
                if "CERTIFICATE_VERIFY_FAILED" in str(error):
                    raise RefusedError(
                        f"{redact(url)}: its certificate is not trusted; name your CA bundle in REQUESTS_CA_BUNDLE."
                    ) from None
                raise TransientError(f"{redact(url)}: TLS failed: {reason(error)}.") from None
            except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, urllib3.exceptions.HTTPError) as error:
                raise RefusedError(f"{redact(url)}: not an address that can be asked: {type(error).__name__}.") from None
            except requests.RequestException as error:
                raise TransientError(f"{redact(url)}: {reason(error)}.") from None
            except OSError:
                raise RefusedError(
                    f"{redact(url)}: the CA bundle that REQUESTS_CA_BUNDLE names cannot be read; correct its path."
                ) from None
            if (pause_seconds := retry_after_seconds(response.status_code, response.headers)) is not None:
                self._pauses.asked_for(origin(url), pause_seconds)
            if origin(url) == origin(start_url):
                origin_headers = response.headers
            if not response.is_redirect:
                self._active.add(response)
                try:
                    yield response, url, origin_headers
                finally:
                    self._active.discard(response)
                    _release(response)
                return
            response.close()
            url = redirect_target(url, response.headers["Location"])
        raise RefusedError(f"{redact(start_url)}: more than {MAX_REDIRECTS} redirects; give the address they lead to.")

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = _Session()
        return session


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Keeps requests from preparing a redirect: it would read the whole body and trip over a malformed target."""


def _keep_netrc_out(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """An auth callable of our own keeps requests from replacing the Authorization header with one from ~/.netrc."""
    return request


def _shut_down(response: requests.Response) -> None:
    # A read that ends by itself in this moment has given its connection away already.
    with suppress(ValueError, RuntimeError, OSError):
        response.raw.shutdown()


def _release(response: requests.Response) -> None:
    """Gives a connection whose body was read to the end back to the pool, and closes any other."""
    raw = response.raw
    if raw._fp is not None and raw._fp.isclosed():
        raw.release_conn()
    response.close()
