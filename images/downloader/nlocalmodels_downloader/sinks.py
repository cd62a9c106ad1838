"""Who is told of a run: a log and a table, JSON lines for programs, bars for a person at a terminal."""

from __future__ import annotations

import importlib
import json
import logging
import sys
from typing import Any, TextIO

from nlocalmodels_downloader.progress import Span, human_bytes, human_seconds, progress_line
from nlocalmodels_downloader.report import ModelState, RunState

log = logging.getLogger(__name__)


class TextSink:
    """Logs a line per model under way and interval, and writes the summary as a table.

    Outcomes are in the log already, said by those who brought them about.
    """

    def __init__(self, output: TextIO) -> None:
        self._output = output

    def progressed(self, run: RunState) -> None:
        lines = [(model.model_id, model.span) for model in run.under_way]
        if len(lines) > 1:
            lines.append(("in all", run.in_all()))
        for name, span in lines:
            log.info("%s", progress_line(name, span.present_bytes, span.size_bytes, span.bytes_per_second))

    def finished(self, model: ModelState) -> None:
        pass

    def closed(self, run: RunState, completed: bool) -> None:
        pass

    def summarized(self, run: RunState) -> None:
        self._output.write(summary_table(run))
        self._output.flush()


class JsonSink:
    """Writes one JSON object per line. A progress event with model null is of all models together."""

    def __init__(self, output: TextIO) -> None:
        self._output = output

    def progressed(self, run: RunState) -> None:
        for model in run.under_way:
            self._write("progress", model=model.model_id, **_span_fields(model.span), outcome=None, detail="")
        if len(run.under_way) > 1:
            self._write("progress", model=None, **_span_fields(run.in_all()), outcome=None, detail="")

    def finished(self, model: ModelState) -> None:
        self._write("finished", model=model.model_id, **_span_fields(model.span), **_outcome_fields(model))

    def closed(self, run: RunState, completed: bool) -> None:
        pass

    def summarized(self, run: RunState) -> None:
        models = [{"model": model.model_id, **_outcome_fields(model), **_result_fields(model)} for model in run.models]
        self._write("summary", models=models, total=_result_fields(_total(run)))

    def _write(self, event: str, **fields: object) -> None:
        write_json_line(self._output, {"event": event, **fields})


class BarSink(TextSink):
    """Draws a bar per model under way on a terminal, with rich, which is no dependency of the image."""

    def __init__(self, output: TextIO) -> None:
        """Raises ImportError without rich."""
        super().__init__(output)
        self._rich: Any = importlib.import_module("rich.progress")
        self._console: Any = importlib.import_module("rich.console").Console(file=sys.stderr, soft_wrap=True, highlight=False)
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._handlers: list[tuple[logging.StreamHandler[Any], Any]] = []

    def progressed(self, run: RunState) -> None:
        if self._bars is None:
            self._start()
        for model in run.under_way:
            if model.model_id not in self._tasks:
                self._tasks[model.model_id] = self._bars.add_task(model.model_id)
            self._bars.update(self._tasks[model.model_id], completed=model.span.present_bytes, total=model.span.size_bytes)

    def finished(self, model: ModelState) -> None:
        if model.model_id in self._tasks:
            self._bars.remove_task(self._tasks.pop(model.model_id))

    def closed(self, run: RunState, completed: bool) -> None:  # noqa: ARG002
        if self._bars is None:
            return
        for handler, stream in self._handlers:
            handler.setStream(stream)
        self._bars.stop()
        self._bars, self._tasks, self._handlers = None, {}, []

    def _start(self) -> None:
        rich = self._rich
        columns = [rich.TextColumn("{task.description}"), rich.BarColumn(), rich.DownloadColumn(binary_units=True)]
        columns += [rich.TransferSpeedColumn(), rich.TimeRemainingColumn()]
        self._bars = rich.Progress(*columns, console=self._console, transient=True, redirect_stdout=False)
        self._bars.start()
        # rich has put something before sys.stderr that prints above the bars; the log must go there, too.
        for handler in logging.getLogger("nlocalmodels_downloader").handlers:
            if isinstance(handler, logging.StreamHandler):
                self._handlers.append((handler, handler.setStream(sys.stderr)))


def text_sink(output: TextIO) -> TextSink:
    """Returns bars where they can be drawn, lines elsewhere."""
    if sys.stderr.isatty():
        try:
            return BarSink(output)
        except ImportError:
            pass
    return TextSink(output)


def write_json_line(output: TextIO, fields: dict[str, object]) -> None:
    """Writes an object at once, so that a reader of a pipe has it when it is true."""
    output.write(json.dumps(fields, separators=(",", ":")) + "\n")
    output.flush()


def summary_table(run: RunState) -> str:
    rows = [("model", "outcome", "fetched", "time", "rate", "retries")]
    for model in (*run.models, _total(run)):
        outcome = "" if model.model_id == "" else model.outcome.value if model.outcome else "unfinished"
        fetched, rate = human_bytes(model.received_bytes), f"{human_bytes(_average_rate(model))}/s"
        rows.append((model.model_id or "total", outcome, fetched, human_seconds(model.seconds), rate, str(model.num_retries)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(row: tuple[str, ...]) -> str:
        words = [word.ljust(width) for word, width in zip(row[:2], widths[:2], strict=True)]
        numbers = [word.rjust(width) for word, width in zip(row[2:], widths[2:], strict=True)]
        return "  ".join(words + numbers)

    return "".join(line(row) + "\n" for row in rows)


def _total(run: RunState) -> ModelState:
    """Returns the run as if it were one model. Its time is the run's, since models are fetched side by side."""
    received_bytes = sum(model.received_bytes for model in run.models)
    return ModelState("", run.in_all(), received_bytes, sum(model.num_retries for model in run.models), run.seconds)


def _average_rate(model: ModelState) -> float:
    return model.received_bytes / max(model.seconds, 1e-3)


def _span_fields(span: Span) -> dict[str, object]:
    return {
        "presentBytes": span.present_bytes,
        "sizeBytes": span.size_bytes,
        "bytesPerSecond": round(span.bytes_per_second),
        "secondsLeft": None if span.seconds_left is None else round(span.seconds_left, 1),
    }


def _outcome_fields(model: ModelState) -> dict[str, object]:
    return {"outcome": model.outcome.value if model.outcome else None, "detail": model.detail}


def _result_fields(model: ModelState) -> dict[str, object]:
    return {
        "fetchedBytes": model.received_bytes,
        "seconds": round(model.seconds, 3),
        "bytesPerSecond": round(_average_rate(model)),
        "retries": model.num_retries,
    }
