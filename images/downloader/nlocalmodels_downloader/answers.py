"""What an HTTP answer means: pure judgements over status and headers (RFC 9110)."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping

from nlocalmodels_downloader.errors import DeniedError, GoneError, RangeError, RefusedError, TransientError
from nlocalmodels_downloader.sources import redact

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")
_DIGITS = re.compile(r"[0-9]{1,18}")

Headers = Mapping[str, str]


def failure(status: int, headers: Headers, url: str) -> Exception:
    """Returns the error that a status stands for."""
    where = redact(url)
    if status in (401, 403):
        return DeniedError(f"{where} answered {status}: it wants a token, or refuses the one it got; check token and licence.")
    if status in (404, 410):
        return GoneError(f"{where} answered {status}: no such file; check repository, file name and revision.")
    if _is_transient(status):
        return TransientError(f"{where} answered {status}.", retry_after_seconds(status, headers))
    return RefusedError(f"{where} answered {status}, which no other attempt would change; check the source.")


def retry_after_seconds(status: int, headers: Headers) -> float | None:
    """Returns how long the server asks to be left alone, None if it does not."""
    return parse_retry_after(headers.get("Retry-After"), time.time()) if _is_transient(status) else None


def _is_transient(status: int) -> bool:
    return status in (408, 425, 429) or status >= 500


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


def content_range(headers: Headers, url: str, asked_start: int) -> tuple[int, int | None]:
    """Returns the start and total of a 206, or raises RangeError (RFC 9110 sections 14.4 and 15.3.7)."""
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    if match is None:
        raise RangeError(f"{redact(url)} answered 206 without a usable Content-Range from byte {asked_start}.")
    return int(match[1]), None if match[3] == "*" else int(match[3])


def content_length(headers: Headers) -> int | None:
    value = headers.get("Content-Length")
    return int(value) if value and _DIGITS.fullmatch(value) else None


def strong_etag(headers: Headers) -> str | None:
    """A weak validator may stand for other bytes and must not be sent in If-Range (RFC 9110 sections 8.8.1, 13.1.5)."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') and etag.endswith('"') and len(etag) > 2 else None


def refuse_encoding(headers: Headers, url: str) -> None:
    """Raises RefusedError for a coded body: ranges and digests would be of something else."""
    coding = headers.get("Content-Encoding", "identity")
    if coding.lower() not in ("", "identity"):
        raise RefusedError(f"{redact(url)} sends {coding}-coded content though identity was asked for; use another source.")


def reason(error: Exception) -> str:
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
