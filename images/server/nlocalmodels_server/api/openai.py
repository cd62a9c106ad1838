"""The OpenAI-compatible routes: models, completions, chat completions.

Source of the shapes and of the order in streams: OpenAI's API reference. One id throughout; with `include_usage` a last chunk
with no choices; then [DONE].
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from nlocalmodels_server.api.errors import ApiError
from nlocalmodels_server.api.openai_shapes import Shape, sse
from nlocalmodels_server.api.params import ParsedRequest, parse_chat_completion, parse_completion
from nlocalmodels_server.models.registry import Registry, UnknownModelError
from nlocalmodels_server.workers.generation import Delta, Generation, GenerationError
from nlocalmodels_server.workers.state import WorkerState
from nlocalmodels_server.workers.worker import Worker

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 32 * 1024 * 1024
_CREATED = int(time.time())


class Choices:
    """The generations of one request, merged in the order in which their text comes."""

    def __init__(self, worker: Worker, parsed: ParsedRequest) -> None:
        self._worker = worker
        self._parsed = parsed
        self._queue: asyncio.Queue[tuple[int, Delta | GenerationError]] = asyncio.Queue()
        self._generations: list[Generation] = []
        self.num_prompt_tokens = 0
        self.num_new_tokens = 0
        self.num_reused_tokens = 0

    async def start(self) -> None:
        """Returns when every generation is accepted, so that refusals can still be statuses.

        Raises:
            GenerationError: one was refused; the others are cancelled.
        """
        try:
            for index, generation in enumerate(self._parsed.generations):
                sink = self._sink(index)
                self._generations.append(await self._worker.generate(generation, sink))
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        for generation in self._generations:
            generation.cancel()

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """Yields (choice index, delta) until all have ended.

        Raises:
            GenerationError: one failed; the others are cancelled.
        """
        num_open = len(self._parsed.generations)
        try:
            while num_open:
                index, item = await self._queue.get()
                if isinstance(item, GenerationError):
                    raise item
                if item.finish_reason is not None:
                    num_open -= 1
                    # A prompt counts once, however many choices are made of it.
                    if index % self._parsed.num_choices_per_prompt == 0:
                        self.num_prompt_tokens += item.num_prompt_tokens
                        self.num_reused_tokens += item.num_reused_tokens
                    self.num_new_tokens += item.num_new_tokens
                yield index, item
        finally:
            self.cancel()

    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_new_tokens,
            "total_tokens": self.num_prompt_tokens + self.num_new_tokens,
            "prompt_tokens_details": {"cached_tokens": self.num_reused_tokens},
        }

    def _sink(self, index: int) -> Callable[[Delta | GenerationError], None]:
        return lambda item: self._queue.put_nowait((index, item))


class _EventStream(StreamingResponse):
    """Ends the generations also when the client is gone before the first event: then nothing iterates, nor cleans up."""

    def __init__(self, events: AsyncIterator[bytes], choices: Choices) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._choices = choices

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._choices.cancel()


def routes(registry: Registry) -> list[Route]:
    """Returns the /v1 routes."""

    async def list_models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model_object(worker) for worker in registry.workers()]})

    async def show_model(request: Request) -> Response:
        return JSONResponse(_model_object(_resolve(registry, request.path_params["model_id"])))

    async def complete(request: Request) -> Response:
        return await _generate(registry, request, parse_completion, is_chat=False)

    async def chat(request: Request) -> Response:
        return await _generate(registry, request, parse_chat_completion, is_chat=True)

    return [
        Route("/v1/models", list_models, methods=["GET"]),
        Route("/v1/models/", list_models, methods=["GET"]),
        Route("/v1/models/{model_id:path}", show_model, methods=["GET"]),
        Route("/v1/completions", complete, methods=["POST"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
    ]


def _model_object(worker: Worker) -> dict[str, Any]:
    """Returns OpenAI's model object; clients ignore the fields that are ours."""
    shape: dict[str, Any] = {"id": worker.model_id, "object": "model", "created": _CREATED, "owned_by": "nlocalmodels"}
    shape["state"] = worker.state.value
    if worker.state is WorkerState.READY:
        shape.update(worker.info)
    elif worker.reason:
        shape["reason"] = worker.reason
    return shape


def _resolve(registry: Registry, name: str | None) -> Worker:
    try:
        return registry.resolve(name)
    except UnknownModelError as error:
        raise ApiError(404, str(error), param="model", code="model_not_found") from None


async def _generate(
    registry: Registry, request: Request, parse: Callable[[dict[str, Any]], ParsedRequest], *, is_chat: bool
) -> Response:
    parsed = parse(await read_json(request))
    started_seconds = time.monotonic()
    worker = _resolve(registry, parsed.model)
    try:
        with registry.hold(worker):
            if worker.waits_for_demand:
                await _unless_disconnected(request, registry.load(worker))
                worker = _resolve(registry, parsed.model)
            choices = Choices(worker, parsed)
            shape = Shape(worker, is_chat)
            # Nothing is awaited since the model was looked up: another one may take its place at any time.
            with worker.lease():
                await _unless_disconnected(request, choices.start())
        if parsed.stream:
            events = _stream(choices, shape, parsed, worker, started_seconds)
            return _EventStream(events, choices)
        whole = await _unless_disconnected(request, _collect(choices, shape, len(parsed.generations)))
    except GenerationError as error:
        raise ApiError.of(error) from None
    _log_served(worker, choices, started_seconds)
    return JSONResponse(whole)


async def _collect(choices: Choices, shape: Shape, num_choices: int) -> dict[str, Any]:
    texts: list[list[str]] = [[] for _ in range(num_choices)]
    reasons: list[str | None] = [None] * num_choices
    async for index, delta in choices.deltas():
        texts[index].append(delta.text)
        reasons[index] = delta.finish_reason
    whole = [shape.choice(index, "".join(texts[index]), reasons[index]) for index in range(num_choices)]
    return shape.whole(whole, choices.usage())


async def _stream(
    choices: Choices, shape: Shape, parsed: ParsedRequest, worker: Worker, started_seconds: float
) -> AsyncIterator[bytes]:
    # Every chunk but the last has a null usage when usage was asked for.
    more = {"usage": None} if parsed.include_usage else {}
    try:
        if shape.is_chat:
            for index in range(len(parsed.generations)):
                yield sse(shape.chunk([shape.delta(index, "", None, role="assistant")], **more))
        async for index, delta in choices.deltas():
            if delta.text:
                yield shape.text_event(index, delta.text, more)
            if delta.finish_reason is not None:
                yield sse(shape.chunk([shape.delta(index, "", delta.finish_reason)], **more))
        if parsed.include_usage:
            yield sse(shape.chunk([], usage=choices.usage()))
        yield b"data: [DONE]\n\n"
        _log_served(worker, choices, started_seconds)
    except GenerationError as error:
        # The status is sent already; OpenAI's clients raise APIError from this.
        yield sse(ApiError.of(error).body())
    finally:
        choices.cancel()


def _log_served(worker: Worker, choices: Choices, started_seconds: float) -> None:
    seconds = time.monotonic() - started_seconds
    log.info(
        "%s: %d prompt and %d new tokens in %.2f s", worker.model_id, choices.num_prompt_tokens, choices.num_new_tokens, seconds
    )


async def read_json(request: Request) -> dict[str, Any]:
    """Returns the body as an object.

    Raises:
        ApiError: too large, not JSON, or no object.
    """
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(413, f"The request body is larger than {MAX_BODY_BYTES} bytes.", code="body_too_large")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The request body is not JSON: {error}.", code="invalid_json") from None
    if not isinstance(document, dict):
        raise ApiError(400, "The request body must be a JSON object.", code="invalid_json")
    return document


async def _unless_disconnected(request: Request, work: Awaitable[Any]) -> Any:
    """Awaits the work, and cancels it when the client goes away first."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for one in (task, watcher):
            one.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
