"""The requests that a process has: how many there may be, what comes of each, how long they take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from nlocalmodels_server.workers.generation import Delta, Generation, GenerationError
from nlocalmodels_server.workers.protocol import Frame
from nlocalmodels_server.workers.throughput import Throughput

_MIN_RETRY_SECONDS, _MAX_RETRY_SECONDS = 1, 300
_UNMEASURED_RETRY_SECONDS = 5


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What a model's requests may take.

    `max_requests` are under way or wait at once; more are refused. `request_seconds` is the most for one of them, waiting
    included. A process that has some and gives no sign of life for `hang_seconds` is ended.
    """

    max_requests: int = 512
    request_seconds: float = 3600.0
    hang_seconds: float = 120.0


class Requests:
    """Hands events on to the requests' sinks, and estimates when there is room again.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._generations: dict[int, Generation] = {}
        self._throughput = Throughput()

    def __len__(self) -> int:
        return len(self._generations)

    def add(self, generation: Generation) -> None:
        self._generations[generation.request_id] = generation
        generation.started_seconds = self._clock()

    def remove(self, request_id: int) -> Generation | None:
        return self._generations.pop(request_id, None)

    @property
    def has_unaccepted(self) -> bool:
        return any(not generation.accepted.done() for generation in self._generations.values())

    @property
    def has_accepted(self) -> bool:
        return any(generation.accepted.done() for generation in self._generations.values())

    def accept(self, request_id: int, num_prompt_tokens: int) -> None:
        generation = self._generations.get(request_id)
        if generation is not None and not generation.accepted.done():
            generation.num_prompt_tokens = num_prompt_tokens
            generation.accepted.set_result(num_prompt_tokens)

    def refuse(self, frame: Frame) -> None:
        self._end(frame["id"], GenerationError(400, frame["message"], frame["code"]))

    def receive(self, events: Iterable[list[Any]]) -> None:
        """Takes what came of a step."""
        for request_id, text, finish_reason, num_prompt_tokens, num_new_tokens, num_reused_tokens, error in events:
            generation = self._generations.get(request_id)
            if generation is None:
                continue
            if not generation.num_events:
                self._throughput.count(generation.num_prompt_tokens)
            generation.num_events += 1
            self._throughput.count(1)
            if error is not None:
                self._end(request_id, GenerationError(500, error, "generation_failed"))
                continue
            if finish_reason is not None:
                self._throughput.finish(num_new_tokens)
                del self._generations[request_id]
            generation.sink(Delta(text, finish_reason, num_prompt_tokens, num_new_tokens, num_reused_tokens))

    def fail_all(self, error: GenerationError) -> None:
        for request_id in list(self._generations):
            self._end(request_id, error)

    def pass_time(self, seconds: float) -> None:
        if self._generations:
            self._throughput.pass_time(seconds)

    def end_overdue(self, request_seconds: float) -> list[int]:
        """Fails the requests that have taken longer, and returns their ids, for the process to stop them."""
        due_seconds = self._clock() - request_seconds
        overdue = [request_id for request_id, one in self._generations.items() if one.started_seconds < due_seconds]
        message = (
            f"The request took longer than the {request_seconds:g} s that it may; ask for fewer tokens or try again later."
        )
        for request_id in overdue:
            self._end(request_id, GenerationError(504, message, "request_timeout", should_retry=False))
        return overdue

    def retry_after_seconds(self) -> int:
        """Returns when what is under way will have been computed, by the measured rate."""
        seconds = self._throughput.seconds_for(sum(map(self._num_uncomputed, self._generations.values())))
        if seconds is None:
            return _UNMEASURED_RETRY_SECONDS
        return min(_MAX_RETRY_SECONDS, max(_MIN_RETRY_SECONDS, math.ceil(seconds)))

    def _num_uncomputed(self, generation: Generation) -> float:
        num_prompt_tokens = 0 if generation.num_events else generation.num_prompt_tokens
        expected = self._throughput.expected_new_tokens(generation.max_new_tokens)
        # One that is already longer than most has at least one token to go.
        return num_prompt_tokens + max(1.0, expected - generation.num_events)

    def _end(self, request_id: int, error: GenerationError) -> None:
        generation = self._generations.pop(request_id, None)
        if generation is None:
            return
        if generation.accepted.done():
            generation.sink(error)
        else:
            generation.accepted.set_exception(error)
