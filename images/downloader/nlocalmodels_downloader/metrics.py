"""Tells Prometheus of a run: a text file that node_exporter's textfile collector, or a sidecar, serves.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/, text format 0.0.4.
"""

from __future__ import annotations

import os
from pathlib import Path

from nlocalmodels_downloader.errors import ConfigError
from nlocalmodels_downloader.report import ModelState, Outcome, RunState

_PREFIX = "nlocalmodels_download_"
_HELP = {
    "present_bytes": ("gauge", "Bytes of the model that are on the volume."),
    "size_bytes": ("gauge", "Bytes of the whole model."),
    "received_bytes_total": ("counter", "Bytes that came over the network, also those that came twice."),
    "retries_total": ("counter", "Attempts that failed and were tried again."),
    "up_to_date": ("gauge", "1 when the last run left every declared model on the volume, verified."),
}


class MetricsSink:
    """Keeps one file up to date. It may serve one board after another: its counters only grow."""

    def __init__(self, path: Path) -> None:
        """Writes the file at once.

        Raises:
            ConfigError: the file cannot be written.
        """
        self._path = path
        self._up_to_date = False
        self._former_totals: dict[str, tuple[int, int]] = {}
        try:
            self._write(RunState((), 0.0))
        except OSError as error:
            raise ConfigError(f"--metrics-file {path}: cannot be written ({error.strerror}); name another place.") from None

    def progressed(self, run: RunState) -> None:
        # A check that finds everything in place does not make it untrue that all is up to date; something missing does.
        if any(model.outcome in (None, Outcome.FAILED) for model in run.models):
            self._up_to_date = False
        self._write(run)

    def finished(self, model: ModelState) -> None:
        if model.outcome is Outcome.FAILED:
            self._up_to_date = False

    def closed(self, run: RunState, completed: bool) -> None:
        self._up_to_date = completed and all(model.outcome in (Outcome.KEPT, Outcome.FETCHED) for model in run.models)
        try:
            self._write(run)
        finally:
            self._former_totals |= {model.model_id: self._totals(model) for model in run.models}

    def summarized(self, run: RunState) -> None:
        pass

    def _totals(self, model: ModelState) -> tuple[int, int]:
        received_bytes, num_retries = self._former_totals.get(model.model_id, (0, 0))
        return received_bytes + model.received_bytes, num_retries + model.num_retries

    def _write(self, run: RunState) -> None:
        totals = self._former_totals | {model.model_id: self._totals(model) for model in run.models}
        text = (
            _family("present_bytes", {model.model_id: model.span.present_bytes for model in run.models})
            + _family("size_bytes", {model.model_id: model.span.size_bytes for model in run.models})
            + _family("received_bytes_total", {name: received for name, (received, _) in totals.items()})
            + _family("retries_total", {name: retries for name, (_, retries) in totals.items()})
            + _head("up_to_date")
            + f"{_PREFIX}up_to_date {int(self._up_to_date)}\n"
        )
        # Not synced: what a power cut takes is written anew by the next run. Hidden, so that no collector reads half of it.
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.new")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self._path)


def _family(name: str, values: dict[str, int]) -> str:
    lines = [f'{_PREFIX}{name}{{model="{_escape(model_id)}"}} {value}\n' for model_id, value in values.items()]
    return _head(name) + "".join(lines)


def _head(name: str) -> str:
    kind, text = _HELP[name]
    return f"# HELP {_PREFIX}{name} {text}\n# TYPE {_PREFIX}{name} {kind}\n"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
