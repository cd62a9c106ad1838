"""The wheel runs on every x86-64 CPU from SSE 4.2 on, emulated where this machine's own is newer."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import containers
from support.gguf_files import write_llama

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(300),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="these are variants for x86-64"),
]

SCRIPT = Path(__file__).with_name("decode.py")


def package() -> Path:
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def run(*arguments: str | Path, emulate: str | None = None, packages: Path | None = None) -> subprocess.CompletedProcess[str]:
    emulator = ["qemu-x86_64", "-cpu", emulate] if emulate else []
    command = [*emulator, sys.executable, str(SCRIPT), *map(str, arguments)]
    environ = {**os.environ, "PYTHONPATH": str(packages)} if packages else {**os.environ}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environ, timeout=240)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with weights in Q4_0: quantized weights are what the variants compute differently."""
    folder = tmp_path_factory.mktemp("models")
    ended = run("--quantize", write_llama(folder / "full.gguf", seed=1), folder / "quantized.gguf")
    assert ended.returncode == 0, ended.stderr
    return folder / "quantized.gguf"


def decoded(ended: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    # Below zero: the signal, SIGILL for an instruction that this CPU does not have.
    assert ended.returncode == 0, f"ended with {ended.returncode}: {ended.stderr[-2000:]}"
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return result


# What the instruction sets of x86-64-v2 and x86-64-v3 are named after.
@pytest.mark.parametrize(("cpu", "variant"), [("Nehalem", "sse42"), ("SandyBridge", "sse42"), ("Haswell", "haswell")])
def test_older_cpu_gets_a_backend_that_it_can_run(model: Path, cpu: str, variant: str) -> None:
    containers.require_commands("qemu-x86_64", why="older CPUs are emulated")
    result = decoded(run(model, emulate=cpu))
    assert result["variants"] == [f"libggml-cpu-{variant}.so"]
    assert len(result["tokens"]) == 8


@pytest.mark.parametrize("variant", sorted(path.name for path in package().glob("lib/libggml-cpu-*.so")))
def test_every_variant_that_this_machine_can_run_computes(model: Path, variant: str, tmp_path: Path) -> None:
    """Alone in a copy of the package, each must be taken."""

    def others(_: str, names: list[str]) -> list[str]:
        return [name for name in names if name.startswith("libggml-cpu-") and name != variant]

    shutil.copytree(package(), tmp_path / "llama_cpp", ignore=others)
    result = decoded(run(model, packages=tmp_path))
    if not result["variants"]:
        pytest.skip("this machine's CPU has not all that it needs")
    assert result["variants"] == [variant]
    assert len(result["tokens"]) == 8
