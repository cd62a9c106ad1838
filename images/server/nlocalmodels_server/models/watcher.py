"""Follows server.yaml and MODEL_PATH while the server runs, and has the registry serve what they say now."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from nlocalmodels_server.models.folder import take_snapshot
from nlocalmodels_server.models.manifest import read_set_sizes, was_fetched_for_another
from nlocalmodels_server.models.model_ids import files_of
from nlocalmodels_server.models.registry import Pending, Registry
from nlocalmodels_server.models.reload import Snapshot, judge_files, missing_files
from nlocalmodels_server.models.scan import scan
from nlocalmodels_server.settings import Settings, SettingsError, SettingsSource

log = logging.getLogger(__name__)


class Watcher:
    """Polls, since network filesystems and ConfigMaps tell nobody of a change."""

    def __init__(self, registry: Registry, source: SettingsSource) -> None:
        self._registry = registry
        self._source = source
        # What server.yaml asks for now; it is in force once all of it is there.
        self._wanted = registry.settings
        self._snapshot: Snapshot | None = None
        self._seen: object = None
        self._folder_problem: str | None = None

    async def run(self) -> None:
        """Polls until it is cancelled."""
        while not self._registry.is_stopping:
            try:
                await self._poll()
            except Exception:  # what is served must not depend on this
                log.exception("looking for changes failed; the models in force serve on")
            await asyncio.sleep(self._registry.settings.reload_seconds)

    async def _poll(self) -> None:
        await self._read_settings()
        previous = self._snapshot
        snapshot, wanted = await self._take_snapshot(), self._wanted
        if snapshot is None or previous is None:
            return
        settled = {file: stamp for file, stamp in snapshot.items() if previous.get(file) == stamp}
        waiting = await self._look_for_missing(wanted, settled)
        settings = self._registry.settings if waiting else wanted
        pending: list[str] = []
        if settings is not wanted:
            pending = [file for model in wanted.models or () for file in files_of(model.file)]
        else:
            pending = await asyncio.to_thread(self._find_foreign, settings, snapshot)
        declared = {model.file for model in settings.models or ()}
        known, held = judge_files(self._registry.targets().values(), previous, snapshot, declared, pending)
        seen = (settings, known, held, settled)
        if seen == self._seen and settings is self._registry.settings:
            return
        self._seen = seen
        path = settings.model_path
        result = await asyncio.to_thread(scan, path, settings.models, settings.serve_undeclared, known, held)
        result.warnings += [
            f"{model.file} is gone from {path}; '{model.id}' is served from memory as long as its process lives"
            for model in result.models
            if model.file not in snapshot
        ]
        self._registry.apply(settings, result, snapshot, known)

    async def _read_settings(self) -> None:
        registry = self._registry
        try:
            settings = await asyncio.to_thread(self._source.read_changed)
        except SettingsError as error:
            registry.config_problem = str(error)
            log.error("%s What was said before stays in force.", error)
            return
        if settings is None:
            return
        registry.config_problem = None
        if settings.reload == "off":
            log.warning("server.yaml says reload: off; what was said before stays in force until the server starts anew")
            return
        # What only a start can change stays, and an unchanged whole stays the same object.
        settings = replace(settings, model_path=registry.settings.model_path)
        self._wanted = registry.settings if settings == registry.settings else settings
        registry.pending = None

    async def _take_snapshot(self) -> Snapshot | None:
        """Returns None for a folder that cannot be read, which says nothing of what is in it."""
        try:
            self._snapshot = await asyncio.to_thread(take_snapshot, self._wanted.model_path)
        except OSError as error:
            problem = f"{error.filename}: {error.strerror}"
            if problem != self._folder_problem:
                log.error("%s; the models in force serve on", problem)
            self._folder_problem = problem
            return None
        self._folder_problem = None
        return self._snapshot

    def _find_foreign(self, settings: Settings, snapshot: Snapshot) -> list[str]:
        """Returns the served files that the downloader has replaced for a set that server.yaml does not tell of yet."""
        path, set_id = settings.model_path, settings.set_id
        if set_id is None:
            return []
        stamps = [stamp for target in self._registry.targets().values() for stamp in target.stamps]
        changed = [file for file, stamp in stamps if file in snapshot and snapshot[file] != stamp]
        return [file for file in changed if was_fetched_for_another(path, set_id, file)]

    async def _look_for_missing(self, wanted: Settings, settled: Snapshot) -> bool:
        """Whether something must still come before all that is wanted can be served; says so once."""
        registry = self._registry
        if wanted is registry.settings and registry.pending is None and self._seen is not None:
            return False  # it was complete before, or nothing is asked for
        sizes = None
        if wanted.set_id is not None:
            sizes = await asyncio.to_thread(read_set_sizes, wanted.model_path, wanted.set_id)
        waiting = tuple(missing_files(wanted.models, wanted.set_id, sizes, settled))
        if waiting and registry.pending is None and wanted is not registry.settings:
            name = "server.yaml has changed" if wanted.set_id is None else f"set {wanted.set_id} is wanted"
            log.info("%s: waiting for %s; the models in force serve on", name, ", ".join(waiting))
        registry.pending = Pending(wanted.set_id, waiting) if waiting else None
        return bool(waiting)
