"""Models that load with their first request, and are evicted for one another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nlocalmodels_server.config import DeclaredModel
from nlocalmodels_server.memory import Memory
from nlocalmodels_server.models.admission import Admission
from nlocalmodels_server.models.folder import take_snapshot
from nlocalmodels_server.models.registry import Registry
from nlocalmodels_server.models.reload import Target
from nlocalmodels_server.models.scan import scan
from nlocalmodels_server.settings import Settings
from nlocalmodels_server.workers.generation import Delta, Generation, GenerationError
from nlocalmodels_server.workers.protocol import GenerationRequest, LoadOptions
from support.gguf_files import write_llama
from support.serving import running_server

MIB = 1024**2
# The server, and what each tiny model takes beside its weights and caches, both small.
SERVER_MIB, MODEL_MIB = 96, 140


def settings(folder: Path, *on_demand: str, boot: str | None = None) -> Settings:
    names = ([boot] if boot else []) + list(on_demand)
    for seed, name in enumerate(names):
        write_llama(folder / f"{name}.gguf", seed=seed, context_length=8192)
    models = tuple(DeclaredModel(name, f"{name}.gguf", load="boot" if name == boot else "onDemand") for name in names)
    return Settings(model_path=folder, models=models, default_model=names[0], num_slots=2)


def with_room_for(num_models: int, told: Settings, test: Callable[[Registry], Awaitable[None]]) -> None:
    """Runs a test on a registry whose memory holds so many models."""
    with_registry(told, SERVER_MIB + num_models * MODEL_MIB, test)


def with_registry(told: Settings, memory_mib: int, test: Callable[[Registry], Awaitable[None]]) -> None:
    memory = Memory(memory_mib * MIB, 0)

    async def run() -> None:
        registry = Registry(told, lambda: memory)
        await registry.start()
        try:
            async with asyncio.timeout(60):
                while registry.not_ready_reason() is not None:
                    await asyncio.sleep(0.01)
                await test(registry)
        finally:
            await registry.stop()

    asyncio.run(run())


async def ask(registry: Registry, name: str, num_tokens: int = 1) -> tuple[Generation, asyncio.Queue[Delta | GenerationError]]:
    """Sends a request as the API does, and returns when it is accepted."""
    results: asyncio.Queue[Delta | GenerationError] = asyncio.Queue()
    worker = registry.resolve(name)
    with registry.hold(worker):
        if worker.waits_for_demand:
            await registry.load(worker)
            worker = registry.resolve(name)
        with worker.lease():
            generation = await worker.generate(GenerationRequest(prompt="x", max_new_tokens=num_tokens), results.put_nowait)
    return generation, results


async def served(registry: Registry, name: str) -> None:
    _, results = await ask(registry, name)
    while not (isinstance(item := await results.get(), Delta) and item.finish_reason):
        assert isinstance(item, Delta)


def states(registry: Registry) -> dict[str, str]:
    return {worker.model_id: worker.state.value for worker in registry.workers()}


def test_least_recently_used_idle_model_makes_room_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(registry: Registry) -> None:
        assert states(registry) == {"a": "unloaded", "b": "unloaded", "base": "ready", "c": "unloaded"}
        await served(registry, "a")
        await served(registry, "b")
        await served(registry, "a")
        assert states(registry) == {"a": "ready", "b": "ready", "base": "ready", "c": "unloaded"}
        await served(registry, "c")
        assert states(registry) == {"a": "ready", "b": "unloaded", "base": "ready", "c": "ready"}
        await served(registry, "b")
        assert states(registry) == {"a": "unloaded", "b": "ready", "base": "ready", "c": "ready"}

    with_room_for(3, settings(tmp_path, "a", "b", "c", boot="base"), test)
    assert "model-evicted: 'b', last asked " in caplog.text
    assert "'c' is to load, and it needs " in caplog.text


def test_requests_that_come_at_once_share_one_load(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(registry: Registry) -> None:
        await asyncio.gather(*(served(registry, "a") for _ in range(5)))

    caplog.set_level("INFO")
    with_room_for(1, settings(tmp_path, "a"), test)
    assert caplog.text.count("model-loading: 'a'") == 1


def test_busy_model_finishes_what_it_has_before_it_goes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(registry: Registry) -> None:
        _, results = await ask(registry, "a", 2000)
        waiting = asyncio.create_task(served(registry, "b"))
        while not registry.draining():
            await asyncio.sleep(0.01)
        back = asyncio.create_task(served(registry, "a"))
        assert states(registry) == {"a": "unloaded", "b": "unloaded"}
        text = ""
        while not (isinstance(item := await results.get(), Delta) and item.finish_reason):
            assert isinstance(item, Delta)
            text += item.text
        assert len(text + item.text) == 2000
        await waiting
        await back
        assert states(registry) == {"a": "ready", "b": "unloaded"}

    with_room_for(1, settings(tmp_path, "a", "b"), test)
    assert "1 requests to finish: 'b' is to load" in caplog.text


def test_contending_models_all_get_served(tmp_path: Path) -> None:
    async def test(registry: Registry) -> None:
        await asyncio.gather(*(served(registry, name) for name in "abcabcabc"))

    with_room_for(1, settings(tmp_path, "a", "b", "c"), test)


def test_model_that_can_never_fit_is_refused_at_the_start_and_the_rest_serve(tmp_path: Path) -> None:
    async def test(registry: Registry) -> None:
        assert states(registry) == {"a": "failed", "base": "ready"}
        with pytest.raises(GenerationError, match=r"'a' cannot be served: it needs \d+ MiB .* for other models"):
            await ask(registry, "a")
        await served(registry, "base")

    with_room_for(1, settings(tmp_path, "a", boot="base"), test)


def test_caches_shrink_to_fit_the_limit(tmp_path: Path) -> None:
    write_llama(tmp_path / "a.gguf", seed=1, context_length=8192)
    write_llama(tmp_path / "b.gguf", seed=2, context_length=8192)
    models = tuple(DeclaredModel(name, f"{name}.gguf") for name in "ab")

    async def test(registry: Registry) -> None:
        cells = {worker.model_id: worker.info["numCells"] for worker in registry.workers()}
        assert (cells["a"], 8192 < cells["b"] < 32768) == (32768, True)

    # Beside the server and what both need for one context: 24 MiB for the rest of a's pool, and 5 for b's.
    memory_mib = 256 + 2 * (98 + 1 + 8) + 24 + 5
    with_registry(Settings(model_path=tmp_path, models=models, default_model="a"), memory_mib, test)


def test_models_that_a_live_server_adds_renames_and_removes_count_too(tmp_path: Path) -> None:
    async def test(registry: Registry) -> None:
        await served(registry, "a")
        await served(registry, "b")
        write_llama(tmp_path / "added.gguf", seed=9, context_length=8192)
        for name in ("added", "renamed"):
            declared = DeclaredModel(name, "added.gguf")
            told = replace(registry.settings, models=(*demanded, declared))
            registry.apply(told, scan(tmp_path, told.models), take_snapshot(tmp_path), ())
            while registry.resolve(name).state.value != "ready":
                await asyncio.sleep(0.01)
            await served(registry, "a")
            await served(registry, "b")
            assert states(registry) == {"a": "unloaded", "b": "ready", name: "ready"}
        registry.apply(replace(told, models=demanded), scan(tmp_path, demanded, False), take_snapshot(tmp_path), ())
        await served(registry, "a")
        assert states(registry) == {"a": "ready", "b": "ready"}

    started = replace(settings(tmp_path, "a", "b"), reload="live")
    demanded = started.models or ()
    with_room_for(2, started, test)


def test_first_request_over_http_waits_for_its_model(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    write_llama(folder / "a.gguf")
    config = tmp_path / "server.yaml"
    config.write_text("models: [{id: a, file: a.gguf, load: onDemand}]")
    with running_server(folder, tmp_path / "log", SERVER_CONFIG=str(config)) as server:
        server.wait_until("/readyz", 200)
        assert server.get("/startupz").status_code == 200
        assert server.get("/v1/models/a").json()["state"] == "unloaded"
        assert server.post("/v1/completions", {"prompt": "x", "max_tokens": 1}).status_code == 200
        assert server.get("/v1/models/a").json()["state"] == "ready"


def test_header_of_a_file_is_read_once_however_often_a_model_asks_for_room(tmp_path: Path) -> None:
    write_llama(tmp_path / "a.gguf")
    target = Target("a", "a.gguf", LoadOptions(1, 1), (("a.gguf", take_snapshot(tmp_path)["a.gguf"]),))
    changed = replace(target, options=LoadOptions(1, 2))

    async def ask_for_room() -> None:
        admission = Admission(tmp_path, lambda: Memory(64 * MIB, 0))
        await admission.plan([])
        reason = await admission.find_shortage(target)
        assert reason is not None
        (tmp_path / "a.gguf").unlink()
        assert await admission.find_shortage(target) == reason
        assert await admission.find_shortage(changed) != reason

    asyncio.run(ask_for_room())


@pytest.mark.parametrize("num_models", [1, 2])
def test_threads_spin_longer_where_no_other_model_wants_the_cores(tmp_path: Path, num_models: int) -> None:
    for seed in range(num_models):
        write_llama(tmp_path / f"{seed}.gguf", seed=seed)

    async def read_spins(registry: Registry) -> None:
        for worker in registry.workers():
            environ = Path(f"/proc/{worker.pid}/environ").read_text().split("\0")
            (spins,) = (int(value.removeprefix("GOMP_SPINCOUNT=")) for value in environ if value.startswith("GOMP_SPINCOUNT="))
            assert (spins > 10_000) == (num_models == 1)

    with_registry(Settings(model_path=tmp_path, num_slots=2), 4096, read_spins)
