"""The only module that talks HTTP: one probe and one way to stream bytes, with every answer judged (RFC 9110)."""

from __future__ import annotations

import email.utils
import ipaddress
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from nlocalmodels_downloader.errors import (
    DeniedError,
    ExpiredError,
    GoneError,
    RangeError,
    RefusedError,
    TransientError,
)
from nlocalmodels_downloader.sources import origin, redact

CHUNK_BYTES = 256 * 1024
MAX_REDIRECTS = 10
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIGITS = re.compile(r"[0-9]{1,18}")


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


class HttpClient:
    """A connection pool per thread, since a requests session is not made to be shared.

    Args:
        connect_timeout_seconds: for a TCP and TLS handshake.
        stall_seconds: without a byte, or below `min_bytes_per_second` over that time, a stream is broken off.
        token: sent to `token_origin` only, never to where it redirects.
    """

    def __init__(
        self,
        connect_timeout_seconds: float,
        stall_seconds: float,
        token: str | None = None,
        token_origin: str | None = None,
        min_bytes_per_second: int = 1024,
    ) -> None:
        self._timeout = (connect_timeout_seconds, stall_seconds)
        self._stall_seconds = stall_seconds
        self._min_bytes_per_second = min_bytes_per_second
        self._token = token
        self._token_origin = origin(token_origin) if token_origin else None
        self._local = threading.local()
        self._active: set[requests.Response] = set()

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
        with self._get(url, headers) as (response, final_url, origin_headers):
            if response.status_code == 206 and headers:
                total, ranges = _content_range(response, 0)[1], True
            elif response.status_code == 200:
                total, ranges = _length(response.headers.get("Content-Length")), False
            elif response.status_code == 416:
                total, ranges = 0, False
            else:
                raise _failure(response, url)
            if total == 0:
                raise RefusedError(f"{redact(url)} is empty; look whether the source holds the file.")
            _refuse_encoding(response, url)
            linked = (origin_headers.get("X-Linked-Etag") or "").strip('"')
            return RemoteFile(
                origin_url=url,
                url=final_url,
                size_bytes=total,
                etag=_strong_etag(response),
                ranges=ranges,
                linked_sha256=linked if _SHA256.fullmatch(linked) else None,
                commit=origin_headers.get("X-Repo-Commit"),
            )

    def refresh(self, remote: RemoteFile) -> RemoteFile:
        """Resolves the origin again, for a signed URL that has expired."""
        return replace(remote, url=self.probe(remote.origin_url).url)

    @contextmanager
    def stream(self, remote: RemoteFile, start: int, end: int, check_etag: bool = False) -> Iterator[Iterator[bytes]]:
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
                found_start, total = _content_range(response, start)
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
                raise _failure(response, remote.origin_url)
            _refuse_encoding(response, remote.url)
            if check_etag and remote.ranges and _strong_etag(response) != remote.etag:
                raise RangeError(f"{redact(remote.url)} now has another ETag than {remote.etag}.")
            yield self._chunks(response, end - start)

    def _chunks(self, response: requests.Response, num_bytes: int) -> Iterator[bytes]:
        """Yields at most `num_bytes`, whatever the server sends beyond them."""
        remaining = num_bytes
        window_start, window_bytes = time.monotonic(), 0
        while remaining:
            try:
                chunk = response.raw.read1(min(CHUNK_BYTES, remaining), decode_content=False)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise TransientError(f"the connection broke: {_reason(error)}.") from None
            if not chunk:
                raise TransientError(f"the connection closed {remaining} bytes early.")
            remaining -= len(chunk)
            yield chunk
            window_bytes += len(chunk)
            elapsed = time.monotonic() - window_start
            if elapsed >= self._stall_seconds:
                if window_bytes < self._min_bytes_per_second * elapsed:
                    raise TransientError(f"the connection stalled: {window_bytes} bytes in {elapsed:.0f} s.")
                window_start, window_bytes = time.monotonic(), 0

    def abort(self) -> None:
        """Ends every read of a body under way in other threads."""
        for response in list(self._active):
            # A read that ends by itself in this moment has given its connection away already.
            with suppress(ValueError, RuntimeError, OSError):
                response.raw.shutdown()

    @contextmanager
    def _get(
        self, url: str, headers: dict[str, str]
    ) -> Iterator[tuple[requests.Response, str, requests.structures.CaseInsensitiveDict[str]]]:
        """Follows redirects by hand and yields the answer, its address and the headers of the last hop on `url`'s origin."""
        session = self._session()
        origin_headers = requests.structures.CaseInsensitiveDict[str]()
        start_url = url
        for _ in range(MAX_REDIRECTS + 1):
            # Identity: a coded body would make byte ranges and digests mean something else (RFC 9110 sections 8.4, 12.5.3).
            sent = {**headers, "Accept-Encoding": "identity", "User-Agent": "nlocalmodels-downloader"}
            if self._token and origin(url) == self._token_origin:
                sent["Authorization"] = f"Bearer {self._token}"
            try:
                response = session.get(
                    url, headers=sent, stream=True, allow_redirects=False, timeout=self._timeout, auth=_keep_netrc_out
                )
            except requests.exceptions.SSLError as error:
                if "CERTIFICATE_VERIFY_FAILED" in str(error):
                    raise RefusedError(
                        f"{redact(url)}: its certificate is not trusted; name your CA bundle in REQUESTS_CA_BUNDLE."
                    ) from None
                raise TransientError(f"{redact(url)}: TLS failed: {_reason(error)}.") from None
            except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, urllib3.exceptions.HTTPError) as error:
                raise RefusedError(f"{redact(url)}: not an address that can be asked: {type(error).__name__}.") from None
            except requests.RequestException as error:
                raise TransientError(f"{redact(url)}: {_reason(error)}.") from None
            except OSError:
                raise RefusedError(
                    f"{redact(url)}: the CA bundle that REQUESTS_CA_BUNDLE names cannot be read; correct its path."
                ) from None
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
            url = _redirect_target(url, response.headers["Location"])
        raise RefusedError(f"{redact(start_url)}: more than {MAX_REDIRECTS} redirects; give the address they lead to.")

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = _Session()
        return session


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Keeps requests from preparing a redirect: it would read the whole body and trip over a malformed target."""


def parse_retry_after(value: str | None, now_seconds: float) -> float | None:
    """Returns seconds to wait, from delta-seconds or an HTTP date (RFC 9110 section 10.2.3), None when absent or malformed."""
    if not value:
        return None
    if _DIGITS.fullmatch(value.strip()):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now_seconds)
    except (ValueError, OverflowError):
        return None


def _keep_netrc_out(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """An auth callable of our own keeps requests from replacing the Authorization header with one from ~/.netrc."""
    return request


def _redirect_target(source: str, location: str) -> str:
    """Returns the absolute target of a redirect, or raises RefusedError for one that must not be followed."""
    try:
        target = urljoin(source, location)
        parts = urlsplit(target)
        origin(target)
    except ValueError:
        raise RefusedError(f"{redact(source)} redirects to a malformed address; refused.") from None
    if parts.scheme not in ("http", "https") or (urlsplit(source).scheme == "https" and parts.scheme != "https"):
        raise RefusedError(f"{redact(source)} redirects to {redact(target)}, which is not https; refused.")
    if any(_is_link_local(address) for address in _addresses(parts.hostname or "")):
        raise RefusedError(f"{redact(source)} redirects to the link-local address of {parts.hostname}; refused.")
    return target


def _addresses(host: str) -> list[str]:
    """Resolves a host, since 169.254.169.254 has many spellings and names; a proxy may know hosts that we do not."""
    try:
        return [str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        return []


def _is_link_local(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_link_local


def _release(response: requests.Response) -> None:
    """Gives a connection whose body was read to the end back to the pool, and closes any other."""
    raw = response.raw
    if getattr(raw, "length_remaining", None) == 0:
        raw.release_conn()
    response.close()


def _content_range(response: requests.Response, asked_start: int) -> tuple[int, int | None]:
    """Returns the start and total of a 206, or raises RangeError (RFC 9110 sections 14.4 and 15.3.7)."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if match is None:
        raise RangeError(f"{redact(response.url)} answered 206 without a usable Content-Range from byte {asked_start}.")
    return int(match[1]), None if match[3] == "*" else int(match[3])


def _length(value: str | None) -> int | None:
    return int(value) if value and _DIGITS.fullmatch(value) else None


def _strong_etag(response: requests.Response) -> str | None:
    """A weak validator may stand for other bytes and must not be sent in If-Range (RFC 9110 sections 8.8.1, 13.1.5)."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') and etag.endswith('"') and len(etag) > 2 else None


def _refuse_encoding(response: requests.Response, url: str) -> None:
    coding = response.headers.get("Content-Encoding", "identity")
    if coding.lower() not in ("", "identity"):
        raise RefusedError(f"{redact(url)} sends {coding}-coded content though identity was asked for; use another source.")


def _failure(response: requests.Response, url: str) -> Exception:
    status, where = response.status_code, redact(url)
    if status in (401, 403):
        return DeniedError(f"{where} answered {status}: it wants a token, or refuses the one it got; check token and licence.")
    if status in (404, 410):
        return GoneError(f"{where} answered {status}: no such file; check repository, file name and revision.")
    if status in (408, 425, 429) or status >= 500:
        wish = parse_retry_after(response.headers.get("Retry-After"), time.time())
        return TransientError(f"{where} answered {status}.", wish)
    return RefusedError(f"{where} answered {status}, which no other attempt would change; check the source.")


def _reason(error: Exception) -> str:
    """Names an error without its text, since requests echo whole URLs with signed queries."""
    cause: BaseException = error
    while (inner := cause.__cause__ or cause.__context__) is not None and not isinstance(cause, TimeoutError):
        cause = inner
    names = [type(error).__name__]
    if isinstance(cause, OSError) and cause.strerror:
        names.append(cause.strerror)
    elif type(cause).__name__ != names[0]:
        names.append(type(cause).__name__)
    return ", ".join(names)
