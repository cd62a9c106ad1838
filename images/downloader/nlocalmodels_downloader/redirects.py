"""Which redirects may be followed."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urljoin, urlsplit

from nlocalmodels_downloader.errors import RefusedError
from nlocalmodels_downloader.sources import origin, redact


def redirect_target(source: str, location: str) -> str:
    """Returns the absolute target of a redirect.

    Raises:
        RefusedError: malformed, no longer https, or link-local (where clouds keep their credentials).
    """
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
