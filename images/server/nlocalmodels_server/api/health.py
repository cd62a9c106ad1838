"""Four different questions: is the process alive, has it started, can it serve, and what does it say of each model."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nlocalmodels_server.models.registry import Registry
from nlocalmodels_server.workers.worker import Worker


def routes(registry: Registry) -> list[Route]:
    """Returns /livez, /startupz, /readyz and /healthz."""

    async def livez(_: Request) -> Response:
        """503 when a model's process hangs and could not be ended: then a new container is the only remedy."""
        wedged = {model_id: f"its process {hang}" for model_id, hang in registry.wedged().items()}
        return JSONResponse({"status": "wedged", "models": wedged} if wedged else {"status": "alive"}, 503 if wedged else 200)

    async def startupz(_: Request) -> Response:
        """503 until every model has loaded or failed once: who takes too long over that is stuck and wants a restart."""
        loading = registry.loading_first()
        return JSONResponse({"status": "starting" if loading else "started", "loading": loading}, 503 if loading else 200)

    async def readyz(_: Request) -> Response:
        reason = registry.not_ready_reason()
        body = {"status": "ready" if reason is None else "not ready", "message": reason, **_detail(registry)}
        return JSONResponse(body, 200 if reason is None else 503)

    async def healthz(_: Request) -> Response:
        reason = registry.not_ready_reason()
        return JSONResponse({"status": "ok" if reason is None else "not ready"}, 200 if reason is None else 503)

    return [
        Route("/livez", livez, methods=["GET"]),
        Route("/startupz", startupz, methods=["GET"]),
        Route("/readyz", readyz, methods=["GET"]),
        Route("/healthz", healthz, methods=["GET"]),
    ]


def _detail(registry: Registry) -> dict[str, Any]:
    """Returns the default model, each model's state, each file that is not served, and what a reload is about to change."""
    replacements = registry.replacements()
    models = {worker.model_id: _model(worker) for worker in registry.workers()}
    for model_id, worker in replacements.items():
        models[model_id]["replacement"] = _model(worker)
    detail: dict[str, Any] = {"default": registry.default_id, "models": models, "problems": registry.scan.problems}
    if registry.settings.set_id is not None:
        detail["set"] = registry.settings.set_id
    if draining := registry.draining():
        detail["draining"] = [{"id": worker.model_id, "requests": worker.num_requests} for worker in draining]
    if registry.pending is not None:
        detail["pending"] = {"set": registry.pending.set_id, "waitingFor": list(registry.pending.waiting_for)}
    if registry.config_problem is not None:
        detail["configProblem"] = registry.config_problem
    return detail


def _model(worker: Worker) -> dict[str, Any]:
    shown = {"state": worker.state.value, "file": worker.path.name, "restarts": worker.num_restarts}
    return {**shown, "reason": worker.reason} if worker.reason else shown
