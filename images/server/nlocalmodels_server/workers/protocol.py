"""What parent and worker say to each other: frames of JSON over a socket pair.

JSON and not pickle, since a worker holds a file that somebody else made: what it says is data, whatever became of it.
A frame is its length in four bytes, big-endian, and a JSON object with an `op`.

parent to worker   load     path, options: once, first
                   generate id and the fields of `GenerationRequest`
                   cancel   id
worker to parent   ready    info, reasons: the model is loaded
                   failed   reason: the file does not load; the worker ends
                   accepted id, num_prompt_tokens
                   refused  id, message, code: the request cannot be served
                   beat     the engine has computed a step; now and then
                   events   a list of [id, text, finish_reason, num_prompt_tokens, num_new_tokens, num_reused_tokens,
                            error], one frame a step
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from nlocalmodels_server.engine.sampling import SamplingParams

log = logging.getLogger(__name__)

_LENGTH = struct.Struct(">I")
MAX_FRAME_BYTES = 256 * 1024 * 1024

Frame = dict[str, Any]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One text to generate, from `messages`, a `prompt` or its `prompt_tokens`; `max_new_tokens` None: up to the context."""

    messages: list[dict[str, Any]] | None = None
    prompt: str | None = None
    prompt_tokens: list[int] | None = None
    max_new_tokens: int | None = None
    stops: list[str] = field(default_factory=list)
    sampling: SamplingParams = field(default_factory=SamplingParams)

    def to_frame(self, request_id: int) -> Frame:
        return {"op": "generate", "id": request_id, **asdict(self)}

    @staticmethod
    def from_frame(frame: Frame) -> GenerationRequest:
        sampling = dict(frame["sampling"])
        sampling["logit_bias"] = tuple((token, bias) for token, bias in sampling["logit_bias"])
        return GenerationRequest(
            messages=frame["messages"],
            prompt=frame["prompt"],
            prompt_tokens=frame["prompt_tokens"],
            max_new_tokens=frame["max_new_tokens"],
            stops=frame["stops"],
            sampling=SamplingParams(**sampling),
        )


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load a model. None leaves the choice to the worker, which knows the file."""

    num_threads: int
    num_slots: int
    context_tokens: int | None = None
    num_prefill_threads: int | None = None
    inter_token_milliseconds: int | None = None
    kv_type: str | None = None
    flash_attention: bool | None = None
    widen_weights: bool | None = None
    on_demand: bool = False
    # Not the model's own affair: another reason or budget asks for no new process.
    threads_reason: str = field(default="as told", compare=False)
    kv_budget_bytes: int | None = field(default=None, compare=False)


def encode_frame(frame: Frame) -> bytes:
    data = json.dumps(frame, separators=(",", ":")).encode()
    return _LENGTH.pack(len(data)) + data


class FrameReceiver(asyncio.Protocol):
    """The parent's end of the socket: hands on each frame at once, since one comes for each token.

    Args:
        model_id: whose process it is, for the log.
        on_frame: gets the frames in order. What it raises ends the connection, as does what is no frame.
    """

    def __init__(self, model_id: str, on_frame: Callable[[Frame], None]) -> None:
        self._model_id = model_id
        self._on_frame = on_frame
        self._data = bytearray()
        self._transport: asyncio.BaseTransport | None = None
        # Done when nothing more can come.
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        try:
            while (frame := self._next_frame()) is not None:
                self._on_frame(frame)
        except Exception:  # whatever it says, those who wait for it must hear of its end
            log.exception("%s: its process does not keep to the protocol", self._model_id)
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio gives it)
        self._end()

    def _next_frame(self) -> Frame | None:
        if self.ended.done() or len(self._data) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._data)
        if length > MAX_FRAME_BYTES:
            raise ValueError(f"a frame of {length} bytes")
        end = _LENGTH.size + length
        if len(self._data) < end:
            return None
        frame = json.loads(str(self._data[_LENGTH.size : end], "utf-8"))
        del self._data[:end]
        if not isinstance(frame, dict):
            raise TypeError(f"a frame is no object but {type(frame).__name__}")
        return frame

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
        if self._transport is not None:
            self._transport.close()


def receive_frame(connection: socket.socket) -> Frame | None:
    """Returns the next frame, None at the end of the socket. Blocks; for the worker."""
    head = _receive_exactly(connection, _LENGTH.size)
    data = _receive_exactly(connection, _LENGTH.unpack(head)[0]) if head else None
    if data is None:
        return None
    frame: Frame = json.loads(data)
    return frame


def _receive_exactly(connection: socket.socket, length: int) -> bytes | None:
    data = bytearray()
    while len(data) < length:
        try:
            piece = connection.recv(min(length - len(data), 1 << 20))
        except ConnectionError:
            return None
        if not piece:
            return None
        data += piece
    return bytes(data)
