"""All models of this server: by name, with their workers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

from nlocalmodels_server.config import DeclaredModel
from nlocalmodels_server.cpu import available_threads
from nlocalmodels_server.models.model_ids import NamedModel
from nlocalmodels_server.models.scan import ScanResult, scan
from nlocalmodels_server.settings import Settings
from nlocalmodels_server.workers.protocol import LoadOptions
from nlocalmodels_server.workers.worker import Worker, WorkerState

log = logging.getLogger(__name__)

_NUM_LOADS_AT_ONCE = 2


class UnknownModelError(Exception):
    """No model has the name; the text says which there are."""


class Registry:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._workers: dict[str, Worker] = {}
        self._names: dict[str, str] = {}
        self.scan = ScanResult()
        self.is_stopping = False

    async def start(self) -> None:
        """Scans the folder and starts every model's process, the default model's first."""
        settings = self._settings
        self.scan = await asyncio.to_thread(scan, settings.model_path, settings.models, settings.serve_undeclared)
        self._log_scan()
        for model in self.scan.models:
            self._names[model.id] = model.id
        # An id is stronger than what else another model goes by.
        for model in self.scan.models:
            for name in (*model.aliases, model.file):
                self._names.setdefault(name, model.id)
        # Threads of two models that spin at barriers starve each other; those of one model alone are faster spinning.
        environ = {"OMP_WAIT_POLICY": "passive"} if len(self.scan.models) > 1 else {}
        load_turns = asyncio.Semaphore(_NUM_LOADS_AT_ONCE)
        for model in sorted(self.scan.models, key=self._load_order):
            path, options = settings.model_path / model.file, self._load_options(model)
            worker = Worker(model.id, path, options, load_turns, environ)
            self._workers[model.id] = worker
            worker.start()

    async def stop(self) -> None:
        self.is_stopping = True
        await asyncio.gather(*(worker.stop() for worker in self._workers.values()))

    @property
    def default_id(self) -> str | None:
        """The model for requests that name none: DEFAULT_MODEL, or the only one there is."""
        if self._settings.default_model is not None:
            return self._names.get(self._settings.default_model)
        return self.scan.models[0].id if len(self.scan.models) == 1 else None

    def resolve(self, name: str | None) -> Worker:
        """Returns the worker for a request's model name; `name:latest` is `name`, none is the default.

        Raises:
            UnknownModelError: no model has the name. It is never silently another.
        """
        if not name:
            model_id = self.default_id
            if model_id is None:
                raise UnknownModelError(f"The request names no model, and {self._no_default()}. {self._there_are()}")
        else:
            model_id = self._names.get(name) or self._names.get(name.removesuffix(":latest"))
            if model_id is None:
                raise UnknownModelError(f"The model '{name}' does not exist. {self._there_are()}")
        return self._workers[model_id]

    def workers(self) -> Iterator[Worker]:
        """Yields the workers in order of their ids."""
        return iter(sorted(self._workers.values(), key=lambda worker: worker.model_id))

    def not_ready_reason(self) -> str | None:
        """Returns why the server is not ready, None when it is."""
        if self.is_stopping:
            return "The server is shutting down."
        path = self._settings.model_path
        if not self._workers:
            found = self.scan.problems or self.scan.ignored
            rest = f" Not served: {'; '.join(f'{file}: {reason}' for file, reason in found.items())}." if found else ""
            return f"No model: looked for *.gguf files in {path}, set by MODEL_PATH.{rest}"
        if self._settings.default_model is not None and self.default_id is None:
            name = f"DEFAULT_MODEL '{self._settings.default_model}'"
            return f"{name} is not among the models in {path}.{self._why_no_default()} {self._there_are()}"
        # One that crashed and comes back is its own affair: it must not take the others out of service.
        loading = [w.model_id for w in self.workers() if w.is_loading_first]
        if loading:
            return f"Loading: {', '.join(loading)}."
        failed = [worker.model_id for worker in self.workers() if worker.state is not WorkerState.READY]
        if self._settings.ready_when == "all" and (failed or self.scan.problems):
            return f"READY_WHEN is all, and these are not served: {', '.join([*failed, *self.scan.problems])}."
        if self.default_id in failed:
            return f"The default model '{self.default_id}' is not served: {self._workers[self.default_id].reason}."
        if len(failed) == len(self._workers):
            return f"None of the models loads: {', '.join(failed)}."
        return None

    def _load_order(self, model: NamedModel) -> tuple[bool, int]:
        """The default model first, then what is declared, in order, then the rest."""
        declared = [declared.file for declared in self._settings.models or ()]
        return model.id != self.default_id, declared.index(model.file) if model.file in declared else len(declared)

    def _load_options(self, model: NamedModel) -> LoadOptions:
        settings = self._settings
        own = next((own for own in settings.models or () if own.file == model.file), DeclaredModel(model.id, model.file))
        return LoadOptions(
            own.num_threads or settings.num_threads or available_threads(),
            own.num_slots or settings.num_slots,
            own.context_tokens or settings.context_tokens,
        )

    def _why_no_default(self) -> str:
        """Returns what became of the file that is declared under the default model's name, as a sentence after a space."""
        files = [model.file for model in self._settings.models or () if model.id == self._settings.default_model]
        return "".join(f" {file}: {self.scan.problems[file]}." for file in files if file in self.scan.problems)

    def _no_default(self) -> str:
        if self._settings.default_model is None:
            return "DEFAULT_MODEL is not set"
        return f"DEFAULT_MODEL '{self._settings.default_model}' is not there"

    def _there_are(self) -> str:
        return f"There are: {', '.join(sorted(self._workers)) or 'none'}."

    def _log_scan(self) -> None:
        for file, reason in self.scan.ignored.items():
            log.info("%s is ignored: %s", file, reason)
        for file, reason in self.scan.problems.items():
            log.error("%s is not served: %s", file, reason)
        for warning in self.scan.warnings:
            log.warning("%s", warning)
        for model in self.scan.models:
            log.info("%s is served as '%s'", model.file, model.id)
        if not self.scan.models:
            log.error("no model: looked for *.gguf files in %s, set by MODEL_PATH", self._settings.model_path)
