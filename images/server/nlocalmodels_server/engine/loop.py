"""The engine's thread: take requests in, schedule, run, sample, hand text out."""

from __future__ import annotations

import contextlib
import logging
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass

from nlocalmodels_server.engine.context import Context, DecodeError
from nlocalmodels_server.engine.llama import Model
from nlocalmodels_server.engine.pacing import StepCosts
from nlocalmodels_server.engine.sampler import Sampler
from nlocalmodels_server.engine.scheduler import Scheduler
from nlocalmodels_server.engine.sequence import Sequence
from nlocalmodels_server.engine.step import Work

log = logging.getLogger(__name__)

NO_TURNS: contextlib.AbstractContextManager[object] = contextlib.nullcontext()


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to a request in a step: new text, and at the end the reason and the token counts."""

    request_id: int
    text: str = ""
    finish_reason: str | None = None
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    num_reused_tokens: int = 0
    error: str | None = None


class Engine:
    """Owns all llama.cpp state of a model. Only its thread touches it; others call `submit`, `cancel` and `stop`.

    Args:
        turn: entered around each step; other models compute while it is not held.
        beat: called after each step, as a sign of life.
    """

    def __init__(
        self,
        model: Model,
        context: Context,
        scheduler: Scheduler,
        costs: StepCosts,
        emit: Callable[[list[Event]], None],
        turn: contextlib.AbstractContextManager[object] = NO_TURNS,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._model = model
        self._context = context
        self._scheduler = scheduler
        self._costs = costs
        self._emit = emit
        self._turn = turn
        self._beat = beat
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
                with self._turn:
                    events = self.step()
                self._beat()
                if events:
                    self._emit(events)

    def step(self) -> list[Event]:
        """Computes one batch and returns what came of it."""
        step = self._scheduler.schedule()
        for sequence in step.preempted:
            log.info("request %d gives up its cells and is computed again later", sequence.request_id)
        self._context.move(step.moves)
        if not step.works:
            return []
        started = time.perf_counter()
        try:
            rows = self._context.decode(step.works)
        except DecodeError as error:
            log.error("step of %d sequences failed: %s", len(step.works), error)
            return [self._fail(work.sequence, f"the model failed on this request: {error}") for work in step.works]
        if rows is None:
            return self._make_room()
        num_yielding = sum(1 + len(work.draft) for work in step.works if work.yields_token)
        num_rows = sum(work.num_rows for work in step.works)
        events = self._take_out(step.works, rows)
        self._costs.record(num_yielding, num_rows - num_yielding, time.perf_counter() - started)
        return events

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
                self._samplers[command.request_id] = Sampler(self._model.num_vocab, command.sampling)
                self._scheduler.add(command)
            elif (sequence := self._sequences.get(command)) is not None:
                self._end(sequence)

    def _take_out(self, works: list[Work], rows: list[int]) -> list[Event]:
        events = []
        yielding = iter(rows)
        for work in works:
            if not work.yields_token:
                self._scheduler.advance(work.sequence, work.num_tokens)
                continue
            event = self._continue(work, next(yielding))
            if event.text or event.finish_reason:
                events.append(event)
        return events

    def _continue(self, work: Work, row: int) -> Event:
        """Chooses a sequence's next tokens: one, and one more for each guess that was the token chosen before it.

        What is chosen is what would be chosen without guesses: each row has the logits after tokens that were chosen
        themselves, and the sampler sees the same rows in the same order.
        """
        sequence = work.sequence
        sampler = self._samplers[sequence.request_id]
        text, reason, num_right = "", None, 0
        while reason is None:
            token = self._context.sample(sampler, row + num_right)
            sequence.tokens.append(token)
            piece, reason = self._judge(sequence, token)
            text += piece
            if num_right == len(work.draft) or work.draft[num_right] != token or reason is not None:
                break
            num_right += 1
        self._scheduler.advance(sequence, work.num_tokens + num_right)
        if num_right < len(work.draft):
            assert sequence.slot is not None
            self._context.cut(sequence.slot, sequence.num_computed)
        sequence.lookup.compare(sequence.tokens[-num_right - 1 :])
        if reason is None:
            return Event(sequence.request_id, text)
        self._end(sequence)
        return Event(
            sequence.request_id,
            text,
            reason,
            num_prompt_tokens=sequence.num_prompt_tokens,
            num_new_tokens=sequence.num_new_tokens,
            num_reused_tokens=sequence.num_reused or 0,
        )

    def _judge(self, sequence: Sequence, token: int) -> tuple[str, str | None]:
        """Returns the text that a new token brings, and why the sequence ends with it, if it does."""
        if self._model.is_end(token):
            return sequence.text.finish(), "stop"
        text = sequence.text.push(self._model.piece(token))
        if sequence.text.is_stopped:
            return text, "stop"
        if sequence.num_new_tokens < sequence.max_new_tokens:
            return text, None
        text += sequence.text.finish()
        return text, "stop" if sequence.text.is_stopped else "length"

    def _make_room(self) -> list[Event]:
        """Answers a cache that is full against expectation. Only a sequence that is alone with it is given up."""
        if self._scheduler.has_kept:
            self._scheduler.drop_kept()
            return []
        sequence = self._scheduler.preempt_youngest()
        if sequence is not None:
            log.info("request %d gives up its cells and is computed again later", sequence.request_id)
            return []
        return [self._fail(self._scheduler.running[0], "the context has no room for this request")]

    def _fail(self, sequence: Sequence, message: str) -> Event:
        self._scheduler.discard(sequence)
        self._forget(sequence)
        return Event(sequence.request_id, error=message)

    def _end(self, sequence: Sequence) -> None:
        self._scheduler.remove(sequence)
        self._forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
        self._samplers.pop(sequence.request_id).close()
        del self._sequences[sequence.request_id]
