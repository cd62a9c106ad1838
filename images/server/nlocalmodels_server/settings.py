"""The only place that reads the environment, and beside it server.yaml. MODEL_PATH and DEFAULT_MODEL are enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nlocalmodels_server.config import BOUNDS, Config, DeclaredModel, load_config

DEFAULT_CONFIG_PATH = Path("/etc/nlocalmodels/server.yaml")


class SettingsError(Exception):
    """A variable or a key of server.yaml is not of its form; the text names all that are not."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the server is told. None leaves the choice to it.

    `ready_when` decides what readiness asks of models: `default` that the default model serves and none is still loading,
    `all` that moreover none has failed. `models` are those that belong here; None declares nothing, and what is in the folder
    is served. `serve_undeclared` is about files that neither they nor a set on the volume name.
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
    models: tuple[DeclaredModel, ...] | None = None
    serve_undeclared: bool = True
    config_path: Path | None = None


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Reads the settings: a variable goes before server.yaml, also before what that says of one model.

    Raises:
        SettingsError: with every problem of both.
    """
    named_path = environ.get("SERVER_CONFIG")
    config, problems = load_config(Path(named_path or DEFAULT_CONFIG_PATH), must_exist=bool(named_path))
    defaults = Settings()
    ready_when = environ.get("READY_WHEN") or config.ready_when or defaults.ready_when
    if ready_when not in ("default", "all"):
        problems.append(f"READY_WHEN='{ready_when}' is not known; set it to default or all.")
    port = _integer(environ, "PORT", (1, 65535), problems)
    context_tokens = _integer(environ, "CONTEXT_TOKENS", BOUNDS["contextTokens"], problems)
    num_slots = _integer(environ, "NUM_SLOTS", BOUNDS["numSlots"], problems)
    num_threads = _integer(environ, "NUM_THREADS", BOUNDS["numThreads"], problems)
    grace_seconds = _integer(environ, "GRACE_SECONDS", BOUNDS["graceSeconds"], problems)
    if problems:
        raise SettingsError(" ".join(problems))
    return Settings(
        model_path=Path(environ.get("MODEL_PATH") or defaults.model_path),
        default_model=environ.get("DEFAULT_MODEL") or None,
        host=environ.get("HOST") or defaults.host,
        port=port or defaults.port,
        ready_when="all" if ready_when == "all" else "default",
        context_tokens=context_tokens or config.context_tokens,
        num_slots=num_slots or config.num_slots or defaults.num_slots,
        num_threads=num_threads or config.num_threads,
        grace_seconds=next(
            value for value in (grace_seconds, config.grace_seconds, defaults.grace_seconds) if value is not None
        ),
        models=_models(config, context_tokens, num_slots, num_threads),
        serve_undeclared=config.serve_undeclared,
        config_path=config.path,
    )


def _models(
    config: Config, context_tokens: int | None, num_slots: int | None, num_threads: int | None
) -> tuple[DeclaredModel, ...] | None:
    """Returns the declared models, without what the environment says instead."""
    if config.models is None:
        return None
    return tuple(
        replace(
            model,
            context_tokens=None if context_tokens else model.context_tokens,
            num_slots=None if num_slots else model.num_slots,
            num_threads=None if num_threads else model.num_threads,
        )
        for model in config.models
    )


def _integer(environ: Mapping[str, str], name: str, bounds: tuple[int, int], problems: list[str]) -> int | None:
    text = environ.get(name)
    if not text:
        return None
    low, high = bounds
    if not (text.isascii() and text.isdigit() and len(text) < 20) or not low <= int(text) <= high:
        problems.append(f"{name}='{text}' is not a whole number from {low} to {high}; set it so or leave it out.")
        return None
    return int(text)
