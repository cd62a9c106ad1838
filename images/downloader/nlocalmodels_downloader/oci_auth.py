"""What a registry is told of who asks: Docker's config.json, and the token that its challenge leads to."""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from nlocalmodels_downloader.errors import RefusedError

# Docker's own registry stands in config.json under an address that nobody asks.
_CONFIG_NAMES = {"registry-1.docker.io": ("https://index.docker.io/v1/", "index.docker.io", "docker.io")}
_PARAMETER = re.compile(r'([a-z_]+)="([^"]*)"', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Challenge:
    """A WWW-Authenticate header (RFC 6750 section 3, distribution specification "token authentication")."""

    scheme: str
    realm: str
    service: str
    scope: str

    def token_url(self, default_scope: str) -> str:
        asked = {"service": self.service, "scope": self.scope or default_scope}
        return f"{self.realm}{'&' if '?' in self.realm else '?'}{urlencode({k: v for k, v in asked.items() if v})}"


def parse_challenge(header: str) -> Challenge | None:
    """Returns None for a scheme that is neither Bearer with a realm nor Basic."""
    scheme, _, rest = header.strip().partition(" ")
    parameters = {name.lower(): value for name, value in _PARAMETER.findall(rest)}
    challenge = Challenge(
        scheme.lower(), parameters.get("realm", ""), parameters.get("service", ""), parameters.get("scope", "")
    )
    return challenge if challenge.scheme == "basic" or (challenge.scheme == "bearer" and challenge.realm) else None


def basic_credentials(config: Path | None, registry: str) -> str | None:
    """Returns what follows "Basic " for a registry, None when the file does not have it.

    Args:
        config: a config.json as `docker login` or a kubernetes.io/dockerconfigjson secret has it.

    Raises:
        RefusedError: the file cannot be read as such. Its content is never shown.
    """
    if config is None:
        return None
    try:
        auths = json.loads(config.read_bytes()).get("auths") or {}
        for name in (registry, f"https://{registry}", f"https://{registry}/", *_CONFIG_NAMES.get(registry, ())):
            entry = auths.get(name)
            if entry and entry.get("auth"):
                return base64.b64encode(base64.b64decode(entry["auth"], validate=True)).decode()
            if entry and entry.get("username"):
                return base64.b64encode(f"{entry['username']}:{entry.get('password', '')}".encode()).decode()
    except OSError as error:
        raise RefusedError(f"{config}: cannot be read ({error.strerror}); check DOCKER_CONFIG and its mount.") from None
    except (ValueError, AttributeError, TypeError, RecursionError, binascii.Error):
        raise RefusedError(f"{config}: is not a config.json with auths; write it anew with `docker login`.") from None
    return None


def token_of(body: bytes) -> str | None:
    """Returns the token of an authorization server's answer, None when there is none."""
    try:
        answer = json.loads(body)
        token = answer.get("token") or answer.get("access_token")
    except (ValueError, AttributeError, RecursionError):
        return None
    # Nothing else fits into a header.
    return token if isinstance(token, str) and token and all("!" <= character <= "~" for character in token) else None
