"""The only place that reads the environment."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nlocalmodels_downloader.errors import ConfigError
from nlocalmodels_downloader.sources import parse_source, redact


@dataclass(frozen=True, slots=True)
class Settings:
    """How to download; what to download is in downloads.yaml.

    `is_durable` waits for the disk before a file is published; without it a file is verified again after a reboot instead.
    `volume_limit_bytes` is the size limit of an emptyDir, which a filesystem's own figures do not show.
    `max_bytes_per_second` is for all connections together; `is_offline` lets no source over the network be asked.
    """

    hub_endpoint: str = "https://huggingface.co"
    hub_token: str | None = field(default=None, repr=False)
    s3_endpoint: str | None = None
    s3_region: str | None = None
    docker_config: Path | None = None
    plain_http_registries: frozenset[str] = frozenset()
    owner: str = "local"
    num_connections: int = 16
    num_attempts: int = 10
    connect_timeout_seconds: float = 15.0
    stall_seconds: float = 60.0
    progress_seconds: float = 10.0
    lease_seconds: float = 90.0
    lease_budget_seconds: float = 1800.0
    is_durable: bool = False
    is_offline: bool = False
    max_bytes_per_second: int | None = None
    volume_limit_bytes: int | None = None
    termination_message_path: Path = Path("/dev/termination-log")


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Reads the settings.

    Raises:
        ConfigError: a variable is not of its form; the message names it.
    """
    defaults = Settings()
    return Settings(
        hub_endpoint=_endpoint("HF_ENDPOINT", environ.get("HF_ENDPOINT") or defaults.hub_endpoint),
        hub_token=_token(environ.get("HF_TOKEN", "")),
        s3_endpoint=_s3_endpoint(environ),
        # botocore itself reads AWS_DEFAULT_REGION alone; newer AWS tools read this one.
        s3_region=environ.get("AWS_REGION") or None,
        docker_config=Path(environ["DOCKER_CONFIG"]) / "config.json" if environ.get("DOCKER_CONFIG") else None,
        plain_http_registries=frozenset(filter(None, environ.get("OCI_PLAIN_HTTP", "").replace(",", " ").split())),
        # Stays the same when a container restarts in its pod, differs between pods.
        owner=environ.get("POD_UID") or environ.get("POD_NAME") or socket.gethostname(),
        num_connections=int(_number(environ, "DOWNLOAD_CONNECTIONS", defaults.num_connections, 1, 16)),
        num_attempts=int(_number(environ, "DOWNLOAD_ATTEMPTS", defaults.num_attempts, 1, 1000)),
        connect_timeout_seconds=_number(environ, "DOWNLOAD_CONNECT_SECONDS", defaults.connect_timeout_seconds, 0.1, 600),
        stall_seconds=_number(environ, "DOWNLOAD_STALL_SECONDS", defaults.stall_seconds, 0.1, 3600),
        lease_seconds=_number(environ, "DOWNLOAD_LEASE_SECONDS", defaults.lease_seconds, 0.5, 3600),
        lease_budget_seconds=_number(environ, "DOWNLOAD_WAIT_SECONDS", defaults.lease_budget_seconds, 0, 1e6),
        is_durable=_boolean(environ, "DOWNLOAD_DURABLE"),
        is_offline=_boolean(environ, "DOWNLOAD_OFFLINE"),
        max_bytes_per_second=int(_number(environ, "DOWNLOAD_MAX_BYTES_PER_SECOND", 0, 1024, 1 << 50)) or None,
        volume_limit_bytes=int(_number(environ, "MODEL_PATH_LIMIT_BYTES", 0, 1, 1 << 60)) or None,
        progress_seconds=_number(environ, "DOWNLOAD_PROGRESS_SECONDS", defaults.progress_seconds, 0.1, 3600),
        termination_message_path=Path(environ.get("TERMINATION_MESSAGE_PATH") or defaults.termination_message_path),
    )


def _s3_endpoint(environ: Mapping[str, str]) -> str | None:
    # Named as by AWS' own tools, the one for this service first.
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if environ.get(name):
            return _endpoint(name, environ[name])
    return None


def _endpoint(name: str, text: str) -> str:
    try:
        source = parse_source(text.rstrip("/"))
    except ConfigError:
        source = None
    if source is None or not source.text.startswith(("http://", "https://")):
        raise ConfigError(f"{name}={redact(text)} is not an http(s) address; set it so or leave it out.")
    return source.text


def _token(text: str) -> str | None:
    """Returns the token without the line end that a mounted secret often has. Errors never show it."""
    token = text.strip()
    if not all("!" <= character <= "~" for character in token):
        raise ConfigError("HF_TOKEN holds characters that no token has (its value is not shown); set it anew.")
    return token or None


def _boolean(environ: Mapping[str, str], name: str) -> bool:
    text = environ.get(name, "")
    if text not in ("", "true", "false"):
        raise ConfigError(f"{name}={os.fsencode(text)!r} is neither true nor false; set it so or leave it out.")
    return text == "true"


def _number(environ: Mapping[str, str], name: str, default: float, low: float, high: float) -> float:
    text = environ.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise ConfigError(f"{name}={os.fsencode(text)!r} is not a number from {low:g} to {high:g}; set it so or leave it out.")
    return value
