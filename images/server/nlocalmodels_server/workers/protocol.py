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
import socket
import struct
from dataclasses import asdict, dataclass, field
from typing import Any

from nlocalmodels_server.engine.sampling import SamplingParams

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
    on_demand: bool = False
    # Not the model's own affair: another reason or budget asks for no new process.
    threads_reason: str = field(default="as told", compare=False)
    kv_budget_bytes: int | None = field(default=None, compare=False)


def encode_frame(frame: Frame) -> bytes:
    data = json.dumps(frame, separators=(",", ":")).encode()
    return _LENGTH.pack(len(data)) + data


async def read_frame(reader: asyncio.StreamReader) -> Frame | None:
    """Returns the next frame, None at the end of the stream or of its sense."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > MAX_FRAME_BYTES:
            return None
        frame = json.loads(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, OSError, ValueError, RecursionError):
        return None
    return frame if isinstance(frame, dict) else None


def receive_frame(connection: socket.socket) -> Frame | None:
    """Like `read_frame`, blocking, for the worker."""
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
