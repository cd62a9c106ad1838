"""All models of this server: by name, with their workers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

from nlocalmodels_server.config import DeclaredModel
from nlocalmodels_server.cpu import available_threads, explain_threads
from nlocalmodels_server.memory import Memory, read_memory
from nlocalmodels_server.models.fleet import Fleet
from nlocalmodels_server.models.folder import take_snapshot
from nlocalmodels_server.models.model_ids import NamedModel
from nlocalmodels_server.models.reload import Snapshot, Target, make_plan, make_targets
from nlocalmodels_server.models.scan import ScanResult, scan
from nlocalmodels_server.settings import Settings
from nlocalmodels_server.workers.protocol import LoadOptions
from nlocalmodels_server.workers.requests import RequestLimits
from nlocalmodels_server.workers.state import WorkerState
from nlocalmodels_server.workers.worker import Worker

log = logging.getLogger(__name__)


class UnknownModelError(Exception):
    """No model has the name; the text says which there are."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A change that is known and not complete yet: the set it asks for, and what must come before it is applied."""

    set_id: str | None
    waiting_for: tuple[str, ...]


class Registry:
    """All of it belongs to the event loop.

    Args:
        memory: what the container has; tests say so themselves.
    """

    def __init__(self, settings: Settings, memory: Callable[[], Memory | None] = read_memory) -> None:
        self.settings = settings
        self._fleet = Fleet(settings.model_path, self._settle, self._spare, memory)
        self._names: dict[str, str] = {}
        # The default model in force; it changes only to one that serves.
        self._default_id: str | None = None
        self.scan = ScanResult()
        self.is_stopping = False
        self.pending: Pending | None = None
        self.config_problem: str | None = None

    async def start(self) -> None:
        """Scans the folder and starts every model's process, the default model's first."""
        settings = self.settings
        self.scan, snapshot = await asyncio.to_thread(_look, settings)
        self._log_scan(ScanResult())
        for model in self.scan.models:
            log.info("%s is served as '%s'", model.file, model.id)
        if not self.scan.models:
            log.error("no model: looked for *.gguf files in %s, set by MODEL_PATH", settings.model_path)
        self._name()
        self._default_id = self._wanted_default()
        targets = make_targets(self._with_options(), snapshot)
        self._tell_fleet(settings)
        await self._fleet.start([targets[model.id] for model in sorted(self.scan.models, key=self._load_order)])

    async def stop(self) -> None:
        self.is_stopping = True
        await self._fleet.stop()

    def targets(self) -> dict[str, Target]:
        """Returns what was last wanted of each model."""
        return {model_id: slot.newest for model_id, slot in self._fleet.slots.items()}

    def apply(self, settings: Settings, scan: ScanResult, snapshot: Snapshot, known: Collection[str]) -> None:
        """Begins to serve what was found, by what is now said of it. What has not changed is not touched.

        Args:
            known: files that count as what their process was loaded from.
        """
        if self.is_stopping:
            return
        is_told, self.settings = settings is not self.settings, settings
        self._tell_fleet(settings)
        before, self.scan = self.scan, scan
        self._log_scan(before)
        self._name()
        current = self.targets()
        wanted = make_targets(self._with_options(), snapshot, current.values(), known)
        wanted = {model.id: wanted[model.id] for model in sorted(scan.models, key=self._load_order)}
        kept_default = self._default_id
        if kept_default in current and kept_default not in wanted and self._keeps_default(wanted):
            log.info("model-kept: '%s' is the default model until '%s' serves", kept_default, settings.default_model)
            wanted[kept_default] = current[kept_default]
        plan = make_plan(current, wanted)
        if is_told:
            log.info("set %s is applied: %s", settings.set_id or "without an id", plan)
            for model_id in plan.kept:
                log.info("model-kept: '%s': %s", model_id, wanted[model_id].file)
        self._default_id = next((new for new, old in plan.renamed if old == self._default_id), self._default_id)
        self._fleet.carry_out(plan, wanted)
        self._settle()

    @property
    def default_id(self) -> str | None:
        """The model for requests that name none: DEFAULT_MODEL, or the only one there is. After a change the one before, until
        the new one serves."""
        return self._default_id if self._default_id in self._fleet.slots else self._wanted_default()

    def resolve(self, name: str | None) -> Worker:
        """Returns the worker for a request's model name; `name:latest` is `name`, none is the default.

        Raises:
            UnknownModelError: no model has the name. It is never silently another.
        """
        if not name:
            model_id = self.default_id
            if model_id not in self._fleet.slots:
                raise UnknownModelError(f"The request names no model, and {self._no_default()}. {self._there_are()}")
        else:
            model_id = self._names.get(name) or self._names.get(name.removesuffix(":latest"))
            if model_id not in self._fleet.slots:
                raise UnknownModelError(f"The model '{name}' does not exist. {self._there_are()}")
        return self._fleet.slots[model_id].worker

    def hold(self, worker: Worker) -> AbstractContextManager[None]:
        """Keeps a model that loads on demand from being evicted for as long as the block lasts."""
        return self._fleet.hold(worker.model_id)

    async def load(self, worker: Worker) -> None:
        """Loads a model on demand; `resolve` then returns the worker that serves.

        Raises:
            GenerationError: there is no memory for it now, or it has not loaded in time.
        """
        await self._fleet.load_on_demand(worker.model_id)

    def workers(self) -> Iterator[Worker]:
        """Yields the workers that get the requests, in order of their ids."""
        return iter(slot.worker for _, slot in sorted(self._fleet.slots.items()))

    def replacements(self) -> dict[str, Worker]:
        """Returns what is to take the place of a model's worker: it loads, or it failed."""
        return {name: slot.replacement.worker for name, slot in self._fleet.slots.items() if slot.replacement is not None}

    def draining(self) -> list[Worker]:
        """Returns the workers that get no more requests and finish the ones they have."""
        return [worker for worker in self._fleet.draining if worker.state is WorkerState.DRAINING]

    def wedged(self) -> dict[str, str]:
        """Returns, by model, how a process hangs that could not be ended; only a new container helps then."""
        return self._fleet.wedged()

    def loading_first(self) -> list[str]:
        """Returns which models have neither served nor failed since the server's start."""
        return self._fleet.loading_first()

    def not_ready_reason(self) -> str | None:
        """Returns why the server is not ready, None when it is."""
        if self.is_stopping:
            return "The server is shutting down."
        settings, slots = self.settings, self._fleet.slots
        if not slots:
            found = self.scan.problems or self.scan.ignored
            rest = f" Not served: {'; '.join(f'{file}: {reason}' for file, reason in found.items())}." if found else ""
            return f"No model: looked for *.gguf files in {settings.model_path}, set by MODEL_PATH.{rest}"
        if settings.default_model is not None and self.default_id is None:
            name = f"DEFAULT_MODEL '{settings.default_model}'"
            return f"{name} is not among the models in {settings.model_path}.{self._why_no_default()} {self._there_are()}"
        # One that crashed and comes back is its own affair: it must not take the others out of service.
        if loading := self.loading_first():
            return f"Loading: {', '.join(loading)}."
        # Nor must one that was added and loads.
        available = [worker.model_id for worker in self.workers() if worker.is_available]
        failed = [w.model_id for w in self.workers() if not w.is_available and not w.is_loading_first]
        if settings.ready_when == "all" and (failed or self.scan.problems):
            return f"READY_WHEN is all, and these are not served: {', '.join([*failed, *self.scan.problems])}."
        if (default_id := self.default_id) in slots and default_id not in available:
            reason = slots[default_id].worker.reason or f"it is {slots[default_id].worker.state.value}"
            return f"The default model '{default_id}' is not served: {reason}."
        if not available:
            return f"None of the models loads: {', '.join(failed)}." if failed else f"Loading: {', '.join(sorted(slots))}."
        return None

    def _settle(self) -> None:
        """Makes the wanted default model the default once it serves, and lets one go that was only kept until then."""
        self._name()
        wanted, slots = self._wanted_default(), self._fleet.slots
        if self._default_id not in slots or (wanted in slots and slots[wanted].worker.is_available):
            if wanted != self._default_id and wanted is not None:
                log.info("the default model is '%s'", wanted)
            self._default_id = wanted
        elif wanted is None and self.settings.default_model is None:
            self._default_id = None
        if wanted == self._default_id:
            for model_id in self._spare():
                self._fleet.remove(model_id)
            self._name()

    def _spare(self) -> list[str]:
        """Returns the model that is served only because it is the default until another serves."""
        wanted = {model.id for model in self.scan.models}
        return [model_id for model_id in self._fleet.slots if model_id not in wanted]

    def _keeps_default(self, wanted: Collection[str]) -> bool:
        """Whether the default model in force must stay, since the wanted one does not serve yet."""
        new = self._wanted_default()
        return self.settings.default_model is not None and not (new in wanted and self._is_ready(new))

    def _is_ready(self, model_id: str | None) -> bool:
        slot = self._fleet.slots.get(model_id or "")
        return slot is not None and slot.worker.is_available

    def _wanted_default(self) -> str | None:
        if self.settings.default_model is not None:
            return self._names.get(self.settings.default_model)
        return self.scan.models[0].id if len(self.scan.models) == 1 else None

    def _name(self) -> None:
        """Gathers the names that models go by. An id is stronger than what else another model goes by."""
        names = {model.id: model.id for model in self.scan.models} | {model_id: model_id for model_id in self._fleet.slots}
        for model in self.scan.models:
            for name in (*model.aliases, model.file):
                names.setdefault(name, model.id)
        self._names = names

    def _with_options(self) -> Iterator[tuple[NamedModel, LoadOptions]]:
        return ((model, self._load_options(model)) for model in self.scan.models)

    def _load_order(self, model: NamedModel) -> tuple[bool, int]:
        """The default model first, then what is declared, in order, then the rest."""
        declared = [declared.file for declared in self.settings.models or ()]
        return model.id != self.default_id, declared.index(model.file) if model.file in declared else len(declared)

    def _load_options(self, model: NamedModel) -> LoadOptions:
        settings = self.settings
        own = next((own for own in settings.models or () if own.file == model.file), DeclaredModel(model.id, model.file))
        told = own.num_threads or settings.num_threads
        return LoadOptions(
            told or available_threads(),
            own.num_slots or settings.num_slots,
            own.context_tokens or settings.context_tokens,
            own.num_prefill_threads,
            own.inter_token_milliseconds,
            own.kv_type,
            own.flash_attention,
            own.widen_weights,
            on_demand=own.load == "onDemand",
            threads_reason="as told" if told else explain_threads(),
        )

    def _tell_fleet(self, settings: Settings) -> None:
        self._fleet.grace_seconds = settings.grace_seconds
        self._fleet.limit(RequestLimits(settings.max_requests, settings.request_seconds, settings.hang_seconds))

    def _why_no_default(self) -> str:
        """Returns what became of the file that is declared under the default model's name, as a sentence after a space."""
        files = [model.file for model in self.settings.models or () if model.id == self.settings.default_model]
        return "".join(f" {file}: {self.scan.problems[file]}." for file in files if file in self.scan.problems)

    def _no_default(self) -> str:
        if self.settings.default_model is None:
            return "DEFAULT_MODEL is not set"
        return f"DEFAULT_MODEL '{self.settings.default_model}' is not there"

    def _there_are(self) -> str:
        return f"There are: {', '.join(sorted(self._fleet.slots)) or 'none'}."

    def _log_scan(self, before: ScanResult) -> None:
        """Logs what was not said of the scan before."""
        for file, reason in self.scan.ignored.items():
            if before.ignored.get(file) != reason:
                log.info("%s is ignored: %s", file, reason)
        for file, reason in self.scan.problems.items():
            if before.problems.get(file) != reason:
                log.error("%s is not served: %s", file, reason)
        for warning in self.scan.warnings:
            if warning not in before.warnings:
                log.warning("%s", warning)


def _look(settings: Settings) -> tuple[ScanResult, Snapshot]:
    """Returns what is in the folder. The stamps come first: what changes meanwhile shows in the next ones."""
    try:
        snapshot = take_snapshot(settings.model_path)
    except OSError:
        snapshot = {}
    return scan(settings.model_path, settings.models, settings.serve_undeclared), snapshot
