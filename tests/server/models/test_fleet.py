"""Plans that are carried out with real processes, where memory is short."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from nlocalmodels_server.memory import Memory
from nlocalmodels_server.models.folder import take_snapshot
from nlocalmodels_server.models.registry import Registry
from nlocalmodels_server.models.scan import scan
from nlocalmodels_server.settings import Settings
from nlocalmodels_server.workers.generation import Delta, Generation, GenerationError
from nlocalmodels_server.workers.protocol import GenerationRequest
from nlocalmodels_server.workers.state import WorkerState
from support.gguf_files import write_llama

SHORT = Memory(limit_bytes=1 << 30, used_bytes=1 << 29)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def with_registry(settings: Settings, test: Callable[[Registry], Awaitable[None]]) -> None:
    """Runs a test on a registry whose models have loaded, and whose container has no memory for another."""

    async def run() -> None:
        registry = Registry(settings, lambda: SHORT)
        await registry.start()
        try:
            await until(lambda: registry.not_ready_reason() is None)
            await test(registry)
        finally:
            await registry.stop()

    asyncio.run(run())


def look_again(registry: Registry, settings: Settings | None = None) -> None:
    path = registry.settings.model_path
    registry.apply(settings or registry.settings, scan(path), take_snapshot(path), ())


async def generate(registry: Registry, num_tokens: int) -> tuple[Generation, asyncio.Queue[Delta | GenerationError]]:
    queue: asyncio.Queue[Delta | GenerationError] = asyncio.Queue()
    worker = registry.resolve("a")
    with worker.lease():
        generation = await worker.generate(GenerationRequest(prompt="x", max_new_tokens=num_tokens), queue.put_nowait)
    return generation, queue


def test_without_memory_for_both_the_old_process_finishes_and_ends_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_llama(tmp_path / "a.gguf", seed=1, context_length=16384)

    async def test(registry: Registry) -> None:
        _, queue = await generate(registry, 4000)
        old_pid = registry.resolve("a").pid
        os.replace(write_llama(tmp_path / "a.new", seed=2), tmp_path / "a.gguf")
        look_again(registry)
        await until(lambda: registry.resolve("a").state is WorkerState.DRAINING)
        with pytest.raises(GenerationError, match="draining; try again soon") as caught:
            await generate(registry, 1)
        assert (caught.value.status, caught.value.retry_after_seconds) == (503, 2)
        while not (isinstance(item := await queue.get(), Delta) and item.finish_reason):
            assert isinstance(item, Delta)
        await until(lambda: registry.resolve("a").state is WorkerState.READY)
        assert registry.resolve("a").pid not in (None, old_pid)
        assert registry.not_ready_reason() is None

    with_registry(Settings(model_path=tmp_path, reload="live"), test)
    assert "no memory for both: it needs 1.50 GiB (0.00 GiB x 1.1 + 1.50 GiB), and 0.50 GiB are free" in caplog.text


def test_an_added_model_waits_for_what_is_being_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_llama(tmp_path / "a.gguf", seed=1, context_length=16384)

    async def test(registry: Registry) -> None:
        generation, _ = await generate(registry, 16000)
        (tmp_path / "a.gguf").unlink()
        write_llama(tmp_path / "b.gguf", seed=2)
        look_again(registry)
        await until(lambda: "waiting for what is being removed to end" in caplog.text)
        assert registry.resolve("b").state is WorkerState.WAITING
        generation.cancel()
        await until(lambda: registry.resolve("b").state is WorkerState.READY)
        assert "loading it all the same" in caplog.text

    with_registry(Settings(model_path=tmp_path, reload="live"), test)


def test_the_last_of_several_changes_counts(tmp_path: Path) -> None:
    write_llama(tmp_path / "a.gguf", seed=1, context_length=16384)

    async def test(registry: Registry) -> None:
        generation, _ = await generate(registry, 16000)
        for seed in (2, 3):
            os.replace(write_llama(tmp_path / "a.new", seed=seed), tmp_path / "a.gguf")
            look_again(registry)
            await until(lambda: registry.resolve("a").state in (WorkerState.DRAINING, WorkerState.WAITING))
        wanted = registry.targets()["a"]
        generation.cancel()
        await until(lambda: registry.resolve("a").state is WorkerState.READY and not registry.replacements())
        assert registry.targets()["a"] == wanted
        assert registry.draining() == []

    with_registry(Settings(model_path=tmp_path, reload="live"), test)


def test_a_default_that_was_only_kept_goes_first_where_memory_is_short(tmp_path: Path) -> None:
    write_llama(tmp_path / "a.gguf", seed=1)

    async def test(registry: Registry) -> None:
        (tmp_path / "a.gguf").unlink()
        write_llama(tmp_path / "b.gguf", seed=2)
        look_again(registry, Settings(model_path=tmp_path, reload="live", default_model="b"))
        assert registry.default_id == "a"
        await until(lambda: registry.default_id == "b" and registry.not_ready_reason() is None)
        assert list(registry.targets()) == ["b"]

    with_registry(Settings(model_path=tmp_path, reload="live", default_model="a"), test)
