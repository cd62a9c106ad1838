"""Puts the application together: routes, errors, and the models' lifetime."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from nlocalmodels_server.api import health, metrics, openai
from nlocalmodels_server.api.errors import ApiError
from nlocalmodels_server.models.registry import Registry
from nlocalmodels_server.models.watcher import Watcher
from nlocalmodels_server.settings import Settings, SettingsSource

# Answered until the end.
_HEALTH_PATHS = frozenset({"/livez", "/startupz", "/readyz", "/healthz", "/metrics"})


def create_app(settings: Settings, source: SettingsSource | None = None) -> Starlette:
    """Returns the application. Models load while it already answers /livez and /readyz.

    Args:
        source: what the settings came from, which is followed if they ask for a live reload.
    """
    registry = Registry(settings)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await registry.start()
        watching = None
        if source is not None and settings.reload == "live":
            watching = asyncio.create_task(Watcher(registry, source).run(), name="watcher")
        try:
            yield
        finally:
            if watching is not None:
                watching.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await watching
            await registry.stop()

    async def home(_: Request) -> Response:
        return PlainTextResponse("nLocalModels is running: /v1/models lists the models, /readyz says how they are.\n")

    app = Starlette(
        routes=[Route("/", home), *health.routes(registry), *metrics.routes(registry), *openai.routes(registry)],
        exception_handlers={
            ApiError: _answer_api_error,
            HTTPException: _answer_http_exception,
            ClientDisconnect: _answer_nobody,
            Exception: _answer_unexpected,
        },
        middleware=[Middleware(_RefuseWhenStopping, registry=registry)],
        lifespan=lifespan,
    )
    app.state.registry = registry
    return app


class _RefuseWhenStopping:
    """What comes after SIGTERM goes to another pod: a 503 that ends the connection, so that the client opens one elsewhere."""

    def __init__(self, app: ASGIApp, registry: Registry) -> None:
        self._app = app
        self._registry = registry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._registry.is_stopping or scope["path"] in _HEALTH_PATHS:
            await self._app(scope, receive, send)
            return
        message = "The server is shutting down; try again, and another one answers."
        response = ApiError(503, message, code="shutting_down", retry_after_seconds=1).response()
        response.headers["Connection"] = "close"
        await response(scope, receive, send)


async def _answer_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = {404: f"There is no {request.url.path} here.", 405: f"{request.method} is not for {request.url.path}."}
    response = ApiError(error.status_code, known.get(error.status_code, error.detail), code="unknown_url").response()
    response.headers.update(error.headers or {})  # a 405 says what is allowed
    return response


async def _answer_nobody(_: Request, __: Exception) -> Response:
    return Response(status_code=499)


async def _answer_unexpected(_: Request, __: Exception) -> Response:
    return ApiError(500, "The server failed on this request; its log says why.", code="internal_error").response()
