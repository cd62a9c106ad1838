"""Runs the server: settings, uvicorn, and how it ends."""

from __future__ import annotations

import logging
import math
import os
import signal
import time

import uvicorn

from nlocalmodels_server.app import create_app
from nlocalmodels_server.logs import log_to_stderr
from nlocalmodels_server.models.folder import find_disagreement
from nlocalmodels_server.models.registry import Registry
from nlocalmodels_server.settings import SettingsError, SettingsSource

log = logging.getLogger("nlocalmodels_server")


class Server(uvicorn.Server):
    """Says that it is not ready as soon as it is told to stop, still answers while requests finish, and then ends with 0.

    uvicorn's own handler closes the door at once, where a proxy that has not heard yet runs into it, and raises the signal
    again after the shutdown, so that the process would end by it.
    """

    registry: Registry
    _stop_seconds: float | None = None

    def handle_exit(self, sig: int, _: object) -> None:
        if self.registry.is_stopping and sig == signal.SIGINT:
            self.force_exit = self.should_exit = True
        if self._stop_seconds is None:
            self._stop_seconds = time.monotonic() + self.registry.settings.grace_seconds
        self.registry.is_stopping = True

    async def on_tick(self, counter: int) -> bool:
        if self._stop_seconds is not None:
            left_seconds = max(0.0, self._stop_seconds - time.monotonic())
            if not self.server_state.tasks or not left_seconds:
                self.config.timeout_graceful_shutdown = math.ceil(left_seconds)
                self.should_exit = True
        return await super().on_tick(counter)


def main() -> int:
    log_to_stderr()
    try:
        source = SettingsSource(os.environ)
        settings = source.read()
    except SettingsError as error:
        log.error("%s", error)
        return 2
    # Nobody brings what is not in an image; with a live reload, what is declared may still come.
    if settings.set_id is not None and settings.reload == "off":
        problem = find_disagreement(settings.model_path, settings.models, settings.set_id)
        if problem is not None:
            log.error("%s", problem)
            return 2
    if settings.config_path is not None:
        log.info("settings from %s", settings.config_path)
    app = create_app(settings, source)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.grace_seconds,
    )
    server = Server(config)
    server.registry = app.state.registry
    log.info("listening on http://%s:%d, models from %s", settings.host, settings.port, settings.model_path)
    server.run()
    return 0 if server.started else 1
