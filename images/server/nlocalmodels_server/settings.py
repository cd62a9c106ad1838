"""The only place that reads the environment. MODEL_PATH and DEFAULT_MODEL are enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


class SettingsError(Exception):
    """A variable is not of its form; the text names it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the server is told. None leaves the choice to it.

    `ready_when` decides what readiness asks of models: `default` that the default model serves and none is still loading,
    `all` that moreover none has failed.
    """

    model_path: Path = Path("/app/models")
    default_model: str | None = None
    host: str = "0.0.0.0"
    port: int = 11434
    ready_when: Literal["default", "all"] = "default"
    context_tokens: int | None = None
    num_slots: int = 32
    num_threads: int | None = None
    grace_seconds: int = 60


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Reads the settings.

    Raises:
        SettingsError: with the first wrong variable.
    """
    defaults = Settings()
    ready_when = environ.get("READY_WHEN") or defaults.ready_when
    if ready_when not in ("default", "all"):
        raise SettingsError(f"READY_WHEN='{ready_when}' is not known; set it to default or all.")
    grace_seconds = _integer(environ, "GRACE_SECONDS", 0, 86400)
    return Settings(
        model_path=Path(environ.get("MODEL_PATH") or defaults.model_path),
        default_model=environ.get("DEFAULT_MODEL") or None,
        host=environ.get("HOST") or defaults.host,
        port=_integer(environ, "PORT", 1, 65535) or defaults.port,
        ready_when="all" if ready_when == "all" else "default",
        context_tokens=_integer(environ, "CONTEXT_TOKENS", 64, 1 << 24),
        num_slots=_integer(environ, "NUM_SLOTS", 1, 256) or defaults.num_slots,
        num_threads=_integer(environ, "NUM_THREADS", 1, 512),
        grace_seconds=defaults.grace_seconds if grace_seconds is None else grace_seconds,
    )


def _integer(environ: Mapping[str, str], name: str, low: int, high: int) -> int | None:
    text = environ.get(name)
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20) or not low <= int(text) <= high:
        raise SettingsError(f"{name}='{text}' is not a whole number from {low} to {high}; set it so or leave it out.")
    return int(text)
