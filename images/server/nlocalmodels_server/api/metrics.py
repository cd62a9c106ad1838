"""What a monitor reads: each model's state, requests and restarts, and how far a reload is.

Source of the format: Prometheus' text exposition format, version 0.0.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nlocalmodels_server.models.registry import Registry
from nlocalmodels_server.workers.state import WorkerState

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Sample = tuple[dict[str, str], float]


def routes(registry: Registry) -> list[Route]:
    """Returns /metrics."""

    async def metrics(_: Request) -> Response:
        return Response("".join(_families(registry)), media_type=_CONTENT_TYPE)

    return [Route("/metrics", metrics, methods=["GET"])]


def _families(registry: Registry) -> Iterator[str]:
    workers = list(registry.workers())
    states = [
        ({"model": worker.model_id, "state": state.value}, float(worker.state is state))
        for worker in workers
        for state in WorkerState
    ]
    yield _family("model_state", "gauge", "1 for the state that a model is in.", states)
    requests = [({"model": worker.model_id}, float(worker.num_requests)) for worker in workers]
    yield _family("model_requests", "gauge", "Requests of a model, under way and waiting.", requests)
    restarts = [({"model": worker.model_id}, float(worker.num_restarts)) for worker in workers]
    yield _family("model_restarts_total", "counter", "How often a model's process ended and was started again.", restarts)
    draining: dict[str, float] = {}
    for worker in registry.draining():
        draining[worker.model_id] = draining.get(worker.model_id, 0.0) + worker.num_requests
    left = [({"model": model_id}, number) for model_id, number in draining.items()]
    yield _family("model_draining_requests", "gauge", "Requests that are finished by processes about to end.", left)
    problems = float(len(registry.scan.problems))
    yield _family("files_not_served", "gauge", "Files of the folder with a problem.", [({}, problems)])
    if registry.settings.set_id is not None:
        yield _family("set_info", "gauge", "The set of models that is served.", [({"set": registry.settings.set_id}, 1.0)])
    yield _family(
        "set_pending", "gauge", "1 while another set waits for its files.", [({}, float(registry.pending is not None))]
    )
    problem = float(registry.config_problem is not None)
    yield _family("config_problem", "gauge", "1 while server.yaml cannot be used.", [({}, problem)])
    ready = float(registry.not_ready_reason() is None)
    yield _family("ready", "gauge", "1 while /readyz answers 200.", [({}, ready)])


def _family(name: str, kind: str, meaning: str, samples: Iterable[Sample]) -> str:
    full_name = f"nlocalmodels_{name}"
    lines = [f"# HELP {full_name} {meaning}", f"# TYPE {full_name} {kind}"]
    for labels, value in samples:
        shown = ",".join(f'{label}="{_escape(text)}"' for label, text in labels.items())
        lines.append(f"{full_name}{{{shown}}} {value:g}" if shown else f"{full_name} {value:g}")
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
