"""The process of one model: `python -m nlocalmodels_server.workers.main FD TURNS_FD PLACE`.

The main thread takes requests in: it renders and tokenizes, both killable and none of the engine's business. A second
thread is the engine's. The end of the socket means that the parent is gone, and ends the process whatever it is doing.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

from nlocalmodels_server.engine import llama
from nlocalmodels_server.engine.chat_template import ChatTemplate, TemplateError
from nlocalmodels_server.engine.choices import Choices, Wishes, choose
from nlocalmodels_server.engine.loop import Engine, Event
from nlocalmodels_server.engine.pacing import StepCosts
from nlocalmodels_server.engine.scheduler import Scheduler
from nlocalmodels_server.engine.sequence import Sequence as EngineSequence
from nlocalmodels_server.engine.step import Limits
from nlocalmodels_server.engine.text import TextStream
from nlocalmodels_server.engine.tokenizing import PromptTooLongError, Tokenizing
from nlocalmodels_server.logs import log_to_stderr
from nlocalmodels_server.workers.protocol import Frame, GenerationRequest, LoadOptions, encode_frame, receive_frame
from nlocalmodels_server.workers.turns import Turn

log = logging.getLogger(__name__)

# More rows in a step make prompts hardly faster, only the wait longer until the next step.
_NUM_BATCH_TOKENS = 256
# Ended sequences whose cells are kept for prompts with the same beginning. llama.cpp has a row of logits over the whole
# vocabulary for each sequence that it may hold, and so there are as many rows for guesses.
_NUM_KEPT = 16
_MAX_SEQUENCES = 256
_BEAT_SECONDS = 0.5


class RefusedRequestError(Exception):
    """A request that this model cannot serve; `code` is OpenAI's."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class Intake:
    """Turns requests into sequences."""

    def __init__(self, model: llama.Model, template: ChatTemplate, context_tokens: int) -> None:
        self._model = model
        self._template = template
        self._context_tokens = context_tokens
        self._tokenizing = Tokenizing(model, context_tokens)

    def sequence(self, request_id: int, request: GenerationRequest) -> EngineSequence:
        """Renders and tokenizes.

        Raises:
            RefusedRequestError: no tokens, too many, or a template that refuses.
        """
        stops: Sequence[str] = request.stops
        if request.prompt_tokens is not None:
            tokens = request.prompt_tokens
            highest = max(tokens, default=0)
            if highest >= self._model.num_vocab:
                raise RefusedRequestError(
                    f"prompt: token {highest} is outside of this model's vocabulary of {self._model.num_vocab}.",
                    "invalid_prompt",
                )
        elif request.messages is not None:
            try:
                text = self._template.render(request.messages)
            except TemplateError as error:
                raise RefusedRequestError(f"messages: {error}.", "invalid_messages") from None
            bos = self._model.token_text("bos")
            # Most templates write the begin token themselves; two of them would confuse the model.
            tokens = self._tokenize(text, add_special=not (bos and text.startswith(bos)))
            stops = [*stops, *self._template.stops]
        else:
            tokens = self._tokenize(request.prompt or "", add_special=True)
        outside = next((token for token, _ in request.sampling.logit_bias if token >= self._model.num_vocab), None)
        if outside is not None:
            raise RefusedRequestError(
                f"logit_bias: token {outside} is outside of this model's vocabulary of {self._model.num_vocab}.",
                "invalid_value",
            )
        if not tokens:
            raise RefusedRequestError("prompt: is empty, and this model has no begin token to start from.", "invalid_prompt")
        room = self._context_tokens - len(tokens)
        if room < 1:
            raise self._too_long(str(len(tokens)))
        wanted = room if request.max_new_tokens is None else min(room, request.max_new_tokens)
        return EngineSequence(request_id, list(tokens), wanted, request.sampling, TextStream(stops))

    def _tokenize(self, text: str, add_special: bool) -> list[int]:
        try:
            return self._tokenizing.tokenize(text, add_special)
        except PromptTooLongError as error:
            raise self._too_long(str(error)) from None

    def _too_long(self, size: str) -> RefusedRequestError:
        return RefusedRequestError(
            f"This model's context is {self._context_tokens} tokens, but the request has {size} in its prompt; "
            "shorten it, or raise CONTEXT_TOKENS on the server.",
            "context_length_exceeded",
        )


class Worker:
    def __init__(self, connection: socket.socket, turns_fd: int, place: int) -> None:
        self._connection = connection
        self._turn = Turn(turns_fd, place, while_waiting=self._beat)
        self._beat_seconds = 0.0
        self._send_lock = threading.Lock()

    def run(self) -> None:
        """Loads the model, then serves until the socket ends."""
        frame = receive_frame(self._connection)
        if frame is None:
            return
        path, options = Path(frame["path"]), LoadOptions(**frame["options"])
        capture = llama.start_backend()
        try:
            model = llama.Model(path, capture)
            if not model.can_generate():
                raise llama.LoadError("it is an encoder or embedding model, which cannot generate text")
            template = ChatTemplate(model.chat_template(), model.token_text("bos"), model.token_text("eos"))
            chosen = _choose(model, options)
            sizes = chosen.sizes
            # Where a state cannot be shared in part, each slot has one of its own, which takes memory.
            num_kept = min(_NUM_KEPT, _MAX_SEQUENCES - options.num_slots) if model.shares_partially() else 0
            num_sequences = options.num_slots + num_kept
            context = model.new_context(
                llama.ContextParams(
                    sizes.num_cells,
                    num_sequences,
                    _NUM_BATCH_TOKENS,
                    options.num_threads,
                    chosen.num_prefill_threads,
                    chosen.kv_type,
                    chosen.flash_attention,
                ),
                capture,
            )
            limits = Limits(
                num_slots=options.num_slots,
                num_cells=context.num_cells,
                num_batch_tokens=_NUM_BATCH_TOKENS,
                num_output_rows=num_sequences,
                num_kept=num_kept,
                shares_partially=model.shares_partially(),
            )
            costs = StepCosts()
            scheduler = Scheduler(limits, costs, context.can_share)
            engine = Engine(model, context, scheduler, costs, self._send_events, self._turn, self._beat)
            self._start(engine, context)
        except (llama.LoadError, TemplateError) as error:
            self._send({"op": "failed", "reason": str(error)})
            return
        info = {
            "description": model.description(),
            "sizeBytes": model.size_bytes,
            "contextTokens": sizes.context_tokens,
            "numCells": context.num_cells,
            "numSlots": options.num_slots,
            "numThreads": options.num_threads,
            "numPrefillThreads": chosen.num_prefill_threads,
            "kvType": chosen.kv_type,
            "flashAttention": {None: "auto", True: "on", False: "off"}[chosen.flash_attention],
            "chatTemplate": "fallback" if template.is_fallback else "model",
        }
        self._send({"op": "ready", "info": info, "reasons": chosen.reasons})
        self._take_requests(engine, Intake(model, template, sizes.context_tokens))

    def _take_requests(self, engine: Engine, intake: Intake) -> None:
        while (frame := receive_frame(self._connection)) is not None:
            request_id = frame["id"]
            if frame["op"] == "cancel":
                engine.cancel(request_id)
                continue
            try:
                sequence = intake.sequence(request_id, GenerationRequest.from_frame(frame))
            except RefusedRequestError as error:
                self._send({"op": "refused", "id": request_id, "message": str(error), "code": error.code})
                continue
            self._send({"op": "accepted", "id": request_id, "num_prompt_tokens": sequence.num_prompt_tokens})
            engine.submit(sequence)

    def _start(self, engine: Engine, context: llama.Context) -> None:
        """Starts the engine's thread and returns when it has computed a first token.

        That thread alone computes. OpenMP keeps a team of threads for each thread that does, and once there are more of them
        than cores, none spins at its barriers any more: a warm-up in the main thread would halve the speed for good.

        Raises:
            LoadError: the model does not compute.
        """
        outcome: queue.SimpleQueue[llama.LoadError | None] = queue.SimpleQueue()
        threading.Thread(target=self._run_engine, args=(engine, context, outcome), name="engine", daemon=True).start()
        error = outcome.get()
        if error is not None:
            raise error

    def _run_engine(self, engine: Engine, context: llama.Context, outcome: queue.SimpleQueue[llama.LoadError | None]) -> None:
        try:
            try:
                context.warm_up()
            except llama.LoadError as error:
                outcome.put(error)
                return
            outcome.put(None)
            engine.run()
        except BaseException:
            # Its state cannot be trusted any more; the parent starts a new process.
            log.exception("the engine failed")
            os._exit(70)

    def _send_events(self, events: list[Event]) -> None:
        self._send(
            {
                "op": "events",
                "events": [
                    [
                        event.request_id,
                        event.text,
                        event.finish_reason,
                        event.num_prompt_tokens,
                        event.num_new_tokens,
                        event.num_reused_tokens,
                        event.error,
                    ]
                    for event in events
                ],
            }
        )

    def _beat(self) -> None:
        """Says now and then that the engine computes, also while no text comes of it."""
        now_seconds = time.monotonic()
        if now_seconds - self._beat_seconds >= _BEAT_SECONDS:
            self._beat_seconds = now_seconds
            self._send({"op": "beat"})

    def _send(self, frame: Frame) -> None:
        try:
            with self._send_lock:
                self._connection.sendall(encode_frame(frame))
        except OSError:
            _end_with_parent()


def _choose(model: llama.Model, options: LoadOptions) -> Choices:
    wishes = Wishes(**{field.name: getattr(options, field.name) for field in fields(Wishes)})
    return choose(wishes, model.trained_context_tokens, model.kv_bytes_per_token(), model.is_full_precision())


def _end_with_parent() -> NoReturn:
    os._exit(0)


def main() -> None:
    log_to_stderr()
    # Ctrl-C reaches the whole foreground group; it is for the parent to say when a worker ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    fd, turns_fd, place = (int(argument) for argument in sys.argv[1:])
    Worker(socket.socket(fileno=fd), turns_fd, place).run()
    # Without the engine's thread in the way: nothing here outlives the process.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
