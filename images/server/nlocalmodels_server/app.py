"""Puts the application together: routes, errors, and the models' lifetime."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from nlocalmodels_server.api import health, openai
from nlocalmodels_server.api.errors import ApiError
from nlocalmodels_server.models.registry import Registry
from nlocalmodels_server.settings import Settings


def create_app(settings: Settings) -> Starlette:
    """Returns the application. Models load while it already answers /livez and /readyz."""
    registry = Registry(settings)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await registry.start()
        try:
            yield
        finally:
            await registry.stop()

    async def home(_: Request) -> Response:
        return PlainTextResponse("nLocalModels is running: /v1/models lists the models, /readyz says how they are.\n")

    app = Starlette(
        routes=[Route("/", home), *health.routes(registry), *openai.routes(registry)],
        exception_handlers={
            ApiError: _answer_api_error,
            HTTPException: _answer_http_exception,
            ClientDisconnect: _answer_nobody,
            Exception: _answer_unexpected,
        },
        lifespan=lifespan,
    )
    app.state.registry = registry
    return app


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
