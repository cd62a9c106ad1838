"""What the sinks write: log lines, a table, JSON lines, bars."""

from __future__ import annotations

import io
import json
import logging
import sys

import pytest

from nlocalmodels_downloader.progress import Span
from nlocalmodels_downloader.report import ModelState, Outcome, RunState
from nlocalmodels_downloader.sinks import BarSink, JsonSink, TextSink, summary_table, text_sink

MIB = 1024**2
FIRST = ModelState("first", Span(1 * MIB, 4 * MIB, MIB), 1 * MIB, 0, 1.0)
SECOND = ModelState("second", Span(0, 4 * MIB, 0.0), 0, 2, 1.0)
RESULTS = RunState(
    (
        ModelState("llama", Span(4 * MIB, 4 * MIB, 0.0), 6 * MIB, 2, 3.0, Outcome.FETCHED),
        ModelState("m", Span(9, 9, 0.0), 0, 0, 0.0, Outcome.KEPT),
        ModelState("absent", Span(0, 0, 0.0), 0, 1, 0.0, Outcome.FAILED, "the source has no such file"),
    ),
    4.0,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _json_lines(output: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in output.getvalue().splitlines()]


def test_text_has_a_line_per_model_under_way_and_one_in_all(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nlocalmodels_downloader")
    output = io.StringIO()
    TextSink(output).progressed(RunState((*RESULTS.models, FIRST, SECOND), 1.0))
    assert caplog.messages == [
        "first: 1.0 MiB of 4.0 MiB (25 %), 1.0 MiB/s, 3 s left",
        "second: 0 B of 4.0 MiB (0 %), 0 B/s, no bytes coming",
        "in all: 5.0 MiB of 12.0 MiB (41 %), 1.0 MiB/s, 7 s left",
    ]
    assert output.getvalue() == ""


def test_text_has_no_line_in_all_for_one_model(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nlocalmodels_downloader")
    TextSink(io.StringIO()).progressed(RunState((FIRST,), 1.0))
    assert len(caplog.messages) == 1


def test_summary_table() -> None:
    assert summary_table(RESULTS).splitlines() == [
        "model   outcome  fetched  time       rate  retries",
        "llama   fetched  6.0 MiB   3 s  2.0 MiB/s        2",
        "m       kept         0 B   0 s      0 B/s        0",
        "absent  failed       0 B   0 s      0 B/s        1",
        "total            6.0 MiB   4 s  1.5 MiB/s        3",
    ]


def test_text_writes_the_table_to_its_output() -> None:
    output = io.StringIO()
    TextSink(output).summarized(RESULTS)
    assert output.getvalue() == summary_table(RESULTS)


def test_json_says_the_same_in_one_object_per_line() -> None:
    output = io.StringIO()
    sink = JsonSink(output)
    sink.progressed(RunState((FIRST, SECOND), 1.0))
    sink.finished(RESULTS.models[2])
    sink.closed(RESULTS, True)
    sink.summarized(RESULTS)
    first, second, in_all, finished, summary = _json_lines(output)
    assert first == {
        "event": "progress",
        "model": "first",
        "presentBytes": MIB,
        "sizeBytes": 4 * MIB,
        "bytesPerSecond": MIB,
        "secondsLeft": 3.0,
        "outcome": None,
        "detail": "",
    }
    assert (second["model"], second["bytesPerSecond"], second["secondsLeft"]) == ("second", 0, None)
    assert (in_all["model"], in_all["presentBytes"], in_all["sizeBytes"]) == (None, MIB, 8 * MIB)
    assert (finished["event"], finished["outcome"], finished["detail"]) == ("finished", "failed", "the source has no such file")
    assert summary["event"] == "summary"
    assert summary["total"] == {"fetchedBytes": 6 * MIB, "seconds": 4.0, "bytesPerSecond": 1.5 * MIB, "retries": 3}
    models = summary["models"]
    assert isinstance(models, list)
    assert models[0] == {
        "model": "llama",
        "outcome": "fetched",
        "detail": "",
        "fetchedBytes": 6 * MIB,
        "seconds": 3.0,
        "bytesPerSecond": 2 * MIB,
        "retries": 2,
    }


def test_json_of_one_model_has_no_line_in_all() -> None:
    output = io.StringIO()
    JsonSink(output).progressed(RunState((FIRST,), 1.0))
    assert [line["model"] for line in _json_lines(output)] == ["first"]


def test_bars_need_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert type(text_sink(io.StringIO())) is TextSink


def test_bars_need_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    assert type(text_sink(io.StringIO())) is TextSink


def test_bars_share_the_terminal_with_the_log_and_leave_it_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm")
    terminal, output = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    logger = logging.getLogger("nlocalmodels_downloader")
    handler = logging.StreamHandler(terminal)
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    sink = text_sink(output)
    assert isinstance(sink, BarSink)
    run = RunState((FIRST, SECOND), 1.0)
    sink.progressed(run)
    assert handler.stream is not terminal
    logger.info("a line of the log")
    sink.progressed(run)
    sink.finished(RESULTS.models[0])
    sink.closed(run, False)
    assert handler.stream is terminal
    assert sys.stderr is terminal
    assert "second" in terminal.getvalue()
    assert "a line of the log" in terminal.getvalue()
    sink.summarized(RESULTS)
    assert output.getvalue() == summary_table(RESULTS)
