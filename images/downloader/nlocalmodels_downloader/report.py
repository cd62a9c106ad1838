"""What a run knows of all its models, and whom it tells: sinks.py and metrics.py are who can be told."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from nlocalmodels_downloader.progress import ModelProgress, Rate, Span, calling_every

log = logging.getLogger(__name__)


class Outcome(Enum):
    """What became of a model."""

    KEPT = "kept"
    FETCHED = "fetched"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ModelState:
    """One model at one moment. `outcome` is None while it is under way; `received_bytes` came over the network."""

    model_id: str
    span: Span
    received_bytes: int
    num_retries: int
    seconds: float
    outcome: Outcome | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class RunState:
    """All models of a run at one moment, in the order in which they were begun."""

    models: tuple[ModelState, ...]
    seconds: float

    @property
    def under_way(self) -> list[ModelState]:
        return [model for model in self.models if model.outcome is None]

    def in_all(self) -> Span:
        """Returns what is fetched in this run, taken together: models kept need no byte, and failed ones get none."""
        spans = [model.span for model in self.models if model.outcome in (None, Outcome.FETCHED)]
        rate = sum(model.span.bytes_per_second for model in self.under_way)
        return Span(sum(span.present_bytes for span in spans), sum(span.size_bytes for span in spans), rate)


class Sink(Protocol):
    """Tells somebody. The board never calls two methods of a sink at once."""

    def progressed(self, run: RunState) -> None:
        """An interval is over."""

    def finished(self, model: ModelState) -> None:
        """A model has its outcome."""

    def closed(self, run: RunState, completed: bool) -> None:
        """The run is over. `completed` is False if an exception ended it, so that models may be missing in the state."""

    def summarized(self, run: RunState) -> None:
        """The run's results are asked for."""


class _Entry:
    """A model on the board. A part that starts anew gets a new ModelProgress, and what the former one counted stays."""

    def __init__(self, model_id: str, now_seconds: float) -> None:
        self._model_id = model_id
        self._parts: dict[str, ModelProgress] = {}
        self._started_seconds = now_seconds
        self._finished_seconds: float | None = None
        self._outcome: Outcome | None = None
        self._detail = ""
        self._former: list[ModelProgress] = []
        self._rate = Rate(now_seconds)

    def begin(self, part: str, progress: ModelProgress) -> None:
        if (former := self._parts.get(part)) is not None:
            self._former.append(former)
        self._parts[part] = progress
        self._outcome, self._detail, self._finished_seconds = None, "", None

    def finish(self, outcome: Outcome, detail: str, now_seconds: float) -> None:
        self._outcome, self._detail, self._finished_seconds = outcome, detail, now_seconds

    def update_rate(self, now_seconds: float) -> None:
        self._rate.update(now_seconds, self._received_bytes())

    def state(self, now_seconds: float) -> ModelState:
        parts = self._parts.values()
        present_bytes, size_bytes = sum(part.present_bytes() for part in parts), sum(part.size_bytes for part in parts)
        return ModelState(
            self._model_id,
            Span(present_bytes, size_bytes, self._rate.bytes_per_second),
            self._received_bytes(),
            sum(part.num_retries for part in (*self._former, *parts)),
            (now_seconds if self._finished_seconds is None else self._finished_seconds) - self._started_seconds,
            self._outcome,
            self._detail,
        )

    def _received_bytes(self) -> int:
        return sum(part.total_bytes() for part in (*self._former, *self._parts.values()))


class Board:
    """All models of a run. Any thread may add and finish; one reporter thread tells the sinks."""

    def __init__(self, sinks: Sequence[Sink], interval_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._sinks = list(sinks)
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._started_seconds = clock()
        self._lock = threading.Lock()
        # Not the lock above: a slow terminal must not hold up who only wants to add a model.
        self._telling = threading.Lock()
        self._entries: dict[str, _Entry] = {}

    def add(self, model_id: str, size_bytes: int, resumed_bytes: int, part: str = "") -> ModelProgress:
        """Begins a model, or begins it again; what was received before counts on.

        Args:
            part: tells the files of a split model apart, whose bytes are added up.
        """
        progress = ModelProgress(model_id, size_bytes, resumed_bytes)
        with self._lock:
            self._entry(model_id).begin(part, progress)
        return progress

    def finish(self, model_id: str, outcome: Outcome, detail: str = "") -> None:
        """Says what became of a model, also of one that never began."""
        with self._lock:
            now_seconds = self._clock()
            entry = self._entry(model_id)
            entry.finish(outcome, detail, now_seconds)
            state = entry.state(now_seconds)
        self._tell(lambda sink: sink.finished(state))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Reports while the block runs."""
        self._started_seconds = self._clock()
        completed = False
        try:
            with calling_every(self._interval_seconds, self.report):
                yield
            completed = True
        finally:
            run = self.state()
            self._tell(lambda sink: sink.closed(run, completed))

    def report(self) -> None:
        """Ends an interval: computes its rates and tells the sinks. The reporter thread calls it."""
        with self._lock:
            now_seconds = self._clock()
            for entry in self._entries.values():
                entry.update_rate(now_seconds)
        run = self.state()
        self._tell(lambda sink: sink.progressed(run))

    def summary(self) -> RunState:
        """Tells the sinks the results, and returns them."""
        run = self.state()
        self._tell(lambda sink: sink.summarized(run))
        return run

    def state(self) -> RunState:
        with self._lock:
            now_seconds = self._clock()
            models = tuple(entry.state(now_seconds) for entry in self._entries.values())
            return RunState(models, now_seconds - self._started_seconds)

    def _entry(self, model_id: str) -> _Entry:
        return self._entries.setdefault(model_id, _Entry(model_id, self._clock()))

    def _tell(self, tell: Callable[[Sink], None]) -> None:
        with self._telling:
            for sink in self._sinks[:]:
                try:
                    tell(sink)
                except (OSError, ValueError) as error:
                    # A closed pipe or a full disk for metrics must not end a download, nor be told every interval.
                    log.warning("%s tells nothing more in this run: %s", type(sink).__name__, error)
                    self._sinks.remove(sink)
