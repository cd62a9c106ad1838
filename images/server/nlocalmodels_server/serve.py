"""Runs the server: settings, uvicorn, and how it ends."""

from __future__ import annotations

import logging
import os
import signal

import uvicorn

from nlocalmodels_server.app import create_app
from nlocalmodels_server.logs import log_to_stderr
from nlocalmodels_server.models.registry import Registry
from nlocalmodels_server.settings import SettingsError, read_settings

log = logging.getLogger("nlocalmodels_server")


class Server(uvicorn.Server):
    """Says that it is not ready as soon as it is told to stop, while streams still finish, and then ends with 0.

    uvicorn's own handler raises the signal again after the shutdown, so that the process would end by it.
    """

    registry: Registry

    def handle_exit(self, sig: int, _: object) -> None:
        self.registry.is_stopping = True
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def main() -> int:
    log_to_stderr()
    try:
        settings = read_settings(os.environ)
    except SettingsError as error:
        log.error("%s", error)
        return 2
    if settings.config_path is not None:
        log.info("settings from %s", settings.config_path)
    app = create_app(settings)
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
