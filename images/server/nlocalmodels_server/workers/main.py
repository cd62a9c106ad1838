"""The process of one model: `python -m nlocalmodels_server.workers.main FD TURNS_FD PLACE`.

The main thread takes requests in: it renders and tokenizes, both killable and none of the engine's business. A second
thread is the engine's, from the loading on. The end of the socket means that the parent is gone, and ends the process whatever
it is doing.
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
from pathlib import Path
from typing import NoReturn

from nlocalmodels_server.engine.chat_template import ChatTemplate, TemplateError
from nlocalmodels_server.engine.llama import LoadError
from nlocalmodels_server.engine.loop import Engine, Event
from nlocalmodels_server.logs import log_to_stderr
from nlocalmodels_server.workers.intake import Intake, RefusedRequestError
from nlocalmodels_server.workers.loading import Loaded, load
from nlocalmodels_server.workers.protocol import Frame, GenerationRequest, LoadOptions, encode_frame, receive_frame
from nlocalmodels_server.workers.turns import Turn

log = logging.getLogger(__name__)

_BEAT_SECONDS = 0.5


class Worker:
    def __init__(self, connection: socket.socket, turns_fd: int, place: int) -> None:
        self._connection = connection
        self._turn = Turn(turns_fd, place, while_waiting=self._beat)
        self._beat_seconds = 0.0
        self._send_lock = threading.Lock()

    def run(self) -> None:
        """Has the model loaded, then serves until the socket ends."""
        frame = receive_frame(self._connection)
        if frame is None:
            return
        path, options = Path(frame["path"]), LoadOptions(**frame["options"])
        loaded: queue.SimpleQueue[Loaded | None] = queue.SimpleQueue()
        threading.Thread(target=self._run_engine, args=(path, options, loaded), name="engine", daemon=True).start()
        ready = loaded.get()
        if ready is None:
            return
        model = ready.model
        try:
            # Here, since it is tried out under a timer, which only a main thread can set.
            template = ChatTemplate(model.chat_template(), model.token_text("bos"), model.token_text("eos"))
        except TemplateError as error:
            self._send({"op": "failed", "reason": str(error)})
            return
        info = {**ready.info, "chatTemplate": "fallback" if template.is_fallback else "model"}
        self._send({"op": "ready", "info": info, "reasons": ready.reasons})
        self._take_requests(ready.engine, Intake(model, template, ready.context_tokens))

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

    def _run_engine(self, path: Path, options: LoadOptions, loaded: queue.SimpleQueue[Loaded | None]) -> None:
        try:
            try:
                model = load(path, options, self._send_events, self._turn, self._beat)
            except LoadError as error:
                self._send({"op": "failed", "reason": str(error)})
                loaded.put(None)
                return
            loaded.put(model)
            model.engine.run()
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
