"""Four different questions: is the process alive, has it started, can it serve, and what does it say of each model."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nlocalmodels_server.models.registry import Registry


def routes(registry: Registry) -> list[Route]:
    """Returns /livez, /startupz, /readyz and /healthz."""

    async def livez(_: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def startupz(_: Request) -> Response:
        """503 until every model has loaded or failed once: who takes too long over that is stuck and wants a restart."""
        loading = [worker.model_id for worker in registry.workers() if worker.is_loading_first]
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
    """Returns the default model, each model's state and each file that is not served, with its reason."""
    models = {
        worker.model_id: {
            "state": worker.state.value,
            "file": worker.path.name,
            "restarts": worker.num_restarts,
            **({"reason": worker.reason} if worker.reason else {}),
        }
        for worker in registry.workers()
    }
    return {"default": registry.default_id, "models": models, "problems": registry.scan.problems}
