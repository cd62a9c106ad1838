"""The engine's thread: take requests in, schedule, run, sample, hand text out."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable
from dataclasses import dataclass

from nlocalmodels_server.engine.llama import Context, DecodeError, Model, Sampler
from nlocalmodels_server.engine.scheduler import Scheduler, Work
from nlocalmodels_server.engine.sequence import Sequence

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to a request in a step: new text, and at the end the reason and the token counts."""

    request_id: int
    text: str = ""
    finish_reason: str | None = None
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    error: str | None = None


class Engine:
    """Owns all llama.cpp state of a model. Only its thread touches it; others call `submit`, `cancel` and `stop`."""

    def __init__(self, model: Model, context: Context, scheduler: Scheduler, emit: Callable[[list[Event]], None]) -> None:
        self._model = model
        self._context = context
        self._scheduler = scheduler
        self._emit = emit
        self._inbox: queue.SimpleQueue[Sequence | int | None] = queue.SimpleQueue()
        self._sequences: dict[int, Sequence] = {}
        self._samplers: dict[int, Sampler] = {}
        self._stopping = False

    def submit(self, sequence: Sequence) -> None:
        self._inbox.put(sequence)

    def cancel(self, request_id: int) -> None:
        """Ends a request within a step. No event follows; an unknown or finished one is ignored."""
        self._inbox.put(request_id)

    def stop(self) -> None:
        self._inbox.put(None)

    def run(self) -> None:
        """Serves until `stop`. Sleeps while there is nothing to do."""
        while not self._stopping:
            self._take_in(wait=not self._scheduler.has_work)
            if self._scheduler.has_work and not self._stopping:
                events = self.step()
                if events:
                    self._emit(events)

    def step(self) -> list[Event]:
        """Computes one batch and returns what came of it."""
        works, preempted = self._scheduler.schedule()
        for sequence in preempted:
            self._evict(sequence)
        if not works:
            return []
        try:
            rows = self._context.decode(works)
        except DecodeError as error:
            log.error("step of %d sequences failed: %s", len(works), error)
            return [self._fail(work.sequence, f"the model failed on this request: {error}") for work in works]
        if rows is None:
            return self._make_room()
        return self._postprocess(works, rows)

    def _take_in(self, wait: bool) -> None:
        while True:
            try:
                command = self._inbox.get(block=wait)
            except queue.Empty:
                return
            wait = False
            if command is None:
                self._stopping = True
            elif isinstance(command, Sequence):
                self._sequences[command.request_id] = command
                self._samplers[command.request_id] = self._model.sampler(command.sampling)
                self._scheduler.add(command)
            elif (sequence := self._sequences.get(command)) is not None:
                self._end(sequence)

    def _postprocess(self, works: list[Work], rows: list[int]) -> list[Event]:
        events = []
        yielding = [work.sequence for work in works if work.yields_token]
        for work in works:
            work.sequence.num_computed += work.num_tokens
        for sequence, row in zip(yielding, rows, strict=True):
            token = self._context.sample(self._samplers[sequence.request_id], row)
            sequence.tokens.append(token)
            event = self._judge(sequence, token)
            if event.text or event.finish_reason:
                events.append(event)
        return events

    def _judge(self, sequence: Sequence, token: int) -> Event:
        """Returns the text that a new token brings, and whether the sequence ends with it."""
        if self._model.is_end(token):
            text, reason = sequence.text.finish(), "stop"
        else:
            text, reason = sequence.text.push(self._model.piece(token)), None
            if not sequence.text.is_stopped and sequence.num_new_tokens >= sequence.max_new_tokens:
                text, reason = text + sequence.text.finish(), "length"
            if sequence.text.is_stopped:
                reason = "stop"
        if reason is None:
            return Event(sequence.request_id, text)
        self._end(sequence)
        return Event(
            sequence.request_id,
            text,
            reason,
            num_prompt_tokens=sequence.num_prompt_tokens,
            num_new_tokens=sequence.num_new_tokens,
        )

    def _make_room(self) -> list[Event]:
        """Answers a full cache: pushes the youngest sequence out, or gives up the only one."""
        sequence = self._scheduler.preempt_youngest()
        if sequence is not None:
            self._evict(sequence)
            return []
        alone = self._scheduler.running[0]
        return [self._fail(alone, "the context has no room for this request")]

    def _evict(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        log.info("request %d gives up its %d cells and is computed again later", sequence.request_id, sequence.num_computed)
        self._context.free(sequence.slot)
        self._scheduler.forget_slot(sequence)

    def _fail(self, sequence: Sequence, message: str) -> Event:
        self._end(sequence)
        return Event(sequence.request_id, error=message)

    def _end(self, sequence: Sequence) -> None:
        if sequence.slot is not None:
            self._context.free(sequence.slot)
        self._scheduler.remove(sequence)
        self._samplers.pop(sequence.request_id).close()
        del self._sequences[sequence.request_id]
