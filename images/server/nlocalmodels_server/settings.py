"""The only place that reads the environment, and beside it server.yaml. MODEL_PATH and DEFAULT_MODEL are enough."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nlocalmodels_server.config import BOUNDS, OWN_BOUNDS, Config, DeclaredModel, load_config

DEFAULT_CONFIG_PATH = Path("/etc/nlocalmodels/server.yaml")


class SettingsError(Exception):
    """A variable or a key of server.yaml is not of its form; the text names all that are not."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the server is told. None leaves the choice to it.

    With `reload` live, a running server follows server.yaml and the folder; `set_id` is the set that `models` describes.
    `ready_when` decides what readiness asks of models: `default` that the default model serves and none is still loading,
    `all` that moreover none has failed. `models` are those that belong here; None declares nothing, and what is in the folder
    is served. `serve_undeclared` is about files that neither they nor a set on the volume name. `max_requests`,
    `request_seconds` and `hang_seconds` are those of RequestLimits.
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
    reload: Literal["off", "live"] = "off"
    reload_seconds: float = 2.0
    set_id: str | None = None
    max_requests: int = 512
    request_seconds: int = 3600
    hang_seconds: int = 120


class SettingsSource:
    """The settings of a running server, which change when server.yaml does. A change is one of content, since a ConfigMap's
    file is swapped by a link. It counts once two readings agree on it, since an editor writes in pieces."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = dict(environ)
        self._path = Path(self._environ.get("SERVER_CONFIG") or DEFAULT_CONFIG_PATH)
        self._taken = self._seen = self._content()

    def read(self) -> Settings:
        """Reads the settings anew.

        Raises:
            SettingsError: with every problem.
        """
        return read_settings(self._environ)

    def read_changed(self) -> Settings | None:
        """Returns the settings if server.yaml has changed since it was last taken, else None.

        Raises:
            SettingsError: it cannot be used; once for each change.
        """
        content = self._content()
        is_settled, self._seen = content == self._seen, content
        if content == self._taken or not is_settled:
            return None
        self._taken = content
        if content is None:
            raise SettingsError(
                f"{self._path}: it is gone or cannot be read; what it said stays in force until it is there again."
            )
        return self.read()

    def _content(self) -> bytes | None:
        try:
            return self._path.read_bytes()
        except OSError:
            return None


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
    reload = environ.get("RELOAD") or config.reload or defaults.reload
    if reload not in ("off", "live"):
        problems.append(f"RELOAD='{reload}' is not known; set it to off or live.")
    reload_seconds = _seconds(environ, "RELOAD_SECONDS", problems)
    port = _integer(environ, "PORT", (1, 65535), problems)
    context_tokens = _integer(environ, "CONTEXT_TOKENS", BOUNDS["contextTokens"], problems)
    num_slots = _integer(environ, "NUM_SLOTS", BOUNDS["numSlots"], problems)
    num_threads = _integer(environ, "NUM_THREADS", BOUNDS["numThreads"], problems)
    grace_seconds = _integer(environ, "GRACE_SECONDS", BOUNDS["graceSeconds"], problems)
    max_requests = _integer(environ, "MAX_REQUESTS", OWN_BOUNDS["maxRequests"], problems)
    request_seconds = _integer(environ, "REQUEST_SECONDS", OWN_BOUNDS["requestSeconds"], problems)
    hang_seconds = _integer(environ, "HANG_SECONDS", OWN_BOUNDS["hangSeconds"], problems)
    if problems:
        raise SettingsError(" ".join(problems))
    return Settings(
        model_path=Path(environ.get("MODEL_PATH") or defaults.model_path),
        default_model=environ.get("DEFAULT_MODEL") or config.default_model,
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
        reload="live" if reload == "live" else "off",
        reload_seconds=reload_seconds or defaults.reload_seconds,
        set_id=config.set_id,
        max_requests=max_requests or config.max_requests or defaults.max_requests,
        request_seconds=request_seconds or config.request_seconds or defaults.request_seconds,
        hang_seconds=hang_seconds or config.hang_seconds or defaults.hang_seconds,
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
            num_prefill_threads=None if num_threads else model.num_prefill_threads,
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


def _seconds(environ: Mapping[str, str], name: str, problems: list[str]) -> float | None:
    text = environ.get(name)
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.01 <= seconds <= 3600:
        problems.append(f"{name}='{text}' is not a number from 0.01 to 3600; set it so or leave it out.")
        return None
    return seconds
