"""A request under way in a worker, what comes of it, and how it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class GenerationError(Exception):
    """A request that failed. `status` is the HTTP status that fits, `code` a word for programs.

    `should_retry` False keeps clients from trying the same again by themselves, as they do by status.
    """

    def __init__(
        self, status: int, message: str, code: str, retry_after_seconds: int | None = None, should_retry: bool = True
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after_seconds = retry_after_seconds
        self.should_retry = should_retry


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of a generation. With the last one come the reason and the token counts; `num_reused_tokens` are those of the
    prompt that were not computed again."""

    text: str
    finish_reason: str | None = None
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    num_reused_tokens: int = 0


Sink = Callable[[Delta | GenerationError], None]


class _Canceller(Protocol):
    def cancel(self, generation: Generation) -> None: ...


class Generation:
    """A request under way. What comes of it goes to its sink, which gets nothing more after the end or a cancel."""

    def __init__(self, worker: _Canceller, request_id: int, sink: Sink, max_new_tokens: int | None = None) -> None:
        self._worker = worker
        self.request_id = request_id
        self.sink = sink
        self.max_new_tokens = max_new_tokens
        self.num_prompt_tokens = 0
        self.num_events = 0
        self.started_seconds = 0.0
        self.accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def cancel(self) -> None:
        """Ends it within a step, and is harmless after its end."""
        self._worker.cancel(self)
