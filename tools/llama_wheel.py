"""Builds llama-cpp-python once into a portable wheel and prints the path of the cached wheel.

llama-cpp-python publishes no wheel, and its own build either fits one CPU or takes ten minutes. This builds only libllama out
of the llama.cpp tree in its sdist, with the CPU backend in several variants of which llama.cpp picks the fastest that the
machine can run, and packs them beside the bindings. The local environment and the server image use the same wheel.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SDIST_LOCK = ROOT / "requirements" / "llama.txt"
BUILD_LOCK = ROOT / "requirements" / "llama-build.txt"

# llama.cpp builds 14 variants for x86-64. Eight differ in speed on machines still in service, from x86-64-v2 to AMX; dropping
# the others halves the build. A CPU of a dropped kind runs the next lower one.
DROPPED_X86_VARIANTS = ("x64", "sandybridge", "ivybridge", "piledriver", "cannonlake", "cooperlake")

CMAKE_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DGGML_BACKEND_DL=ON",
    "-DGGML_CPU_ALL_VARIANTS=ON",
    "-DGGML_NATIVE=OFF",
    "-DGGML_CCACHE=OFF",
    "-DLLAMA_BUILD_COMMON=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_TOOLS=OFF",
    # Libraries find each other beside themselves, wherever the wheel is installed.
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "-DCMAKE_INSTALL_RPATH=$ORIGIN",
    # A wheel cannot hold links. Without versioned names there is one libggml.so, so one backend registry.
    "-DCMAKE_PLATFORM_NO_VERSIONED_SONAME=ON",
)


def cache_dir() -> Path:
    base = os.environ.get("NLOCALMODELS_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "nlocalmodels"
    )
    return Path(base)


def recipe_key() -> str:
    """Returns a short hash of everything in this repository that decides the wheel's bytes, and the machine's architecture."""
    digest = hashlib.sha256()
    for path in (Path(__file__), SDIST_LOCK, BUILD_LOCK):
        digest.update(path.read_bytes())
    digest.update(platform.machine().encode())
    return digest.hexdigest()[:12]


def cached_wheel(directory: Path) -> Path | None:
    return next(iter(sorted(directory.glob("llama_cpp_python-*.whl"))), None)


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Keeps two checkouts on one machine from building the same wheel at the same time."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def sign_of_life(log_path: Path, interval_seconds: float) -> Iterator[None]:
    """Prints how far the build is every interval, since its own output goes to a file."""
    done = threading.Event()
    start = time.monotonic()

    def report() -> None:
        while not done.wait(interval_seconds):
            steps = re.findall(r"^\[(\d+)/(\d+)\]", log_path.read_text(errors="replace"), re.MULTILINE)
            position = f"{int(steps[-1][0]) * 100 // int(steps[-1][1])} %" if steps else "starting"
            print(f"  llama.cpp: {position}, {time.monotonic() - start:.0f} s", flush=True)

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def run(command: list[str], log_path: Path, cwd: Path | None = None) -> None:
    with open(log_path, "ab") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, cwd=cwd, check=False).returncode
    if code:
        tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-30:])
        sys.exit(
            f"{tail}\nllama_wheel: '{command[0]}' ended with {code}. The whole log is {log_path}. "
            "It needs gcc and g++ 11 or newer and about 2 GB of free disk."
        )


def create_build_environment(work: Path, log_path: Path) -> Path:
    """Returns the Python of a throw-away environment with the pinned build tools, so that none of them stays behind."""
    venv.create(work / "venv", with_pip=True)
    python = work / "venv" / "bin" / "python"
    run([str(python), "-m", "pip", "install", "--require-hashes", "--no-deps", "-r", str(BUILD_LOCK)], log_path)
    return python


def fetch_sdist(work: Path, python: Path, log_path: Path) -> Path:
    options = ["--no-deps", "--no-binary", ":all:", "--require-hashes", "--no-build-isolation"]
    run([str(python), "-m", "pip", "download", *options, "-r", str(SDIST_LOCK), "-d", str(work)], log_path)
    (archive,) = work.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(work, filter="data")
    archive.unlink()
    (tree,) = work.glob("llama_cpp_python-*")
    return tree


def drop_variants(tree: Path) -> None:
    lists = tree / "vendor" / "llama.cpp" / "ggml" / "src" / "CMakeLists.txt"
    text = lists.read_text()
    for variant in DROPPED_X86_VARIANTS:
        text, count = re.subn(rf"^\s*ggml_add_cpu_backend_variant\({variant}[ )].*\n", "", text, flags=re.MULTILINE)
        if count != 1:
            sys.exit(
                f"llama_wheel: CPU variant '{variant}' is not in {lists.name} of this llama.cpp; review DROPPED_X86_VARIANTS."
            )
    lists.write_text(text)


def load_whole_tile_configuration(tree: Path) -> None:
    """Mends the AMX kernels, which otherwise end in SIGILL on every CPU that has AMX.

    GCC's _tile_loadconfig says that it reads eight bytes of the configuration, so the compiler drops the stores to the rest
    (GCC 12, amxtileintrin.h). The same is reported in https://github.com/ggml-org/llama.cpp/pull/26954.
    """
    kernels = tree / "vendor" / "llama.cpp" / "ggml" / "src" / "ggml-cpu" / "amx" / "mmq.cpp"
    text = kernels.read_text()
    call = "_tile_loadconfig(&tc);"
    if text.count(call) != 1:
        sys.exit(f"llama_wheel: '{call}' is not once in {kernels.name} of this llama.cpp; review whether it needs mending.")
    kernels.write_text(text.replace(call, '__asm__ volatile("ldtilecfg %0" : : "m"(tc));'))


def openmp_runtime() -> Path:
    """Returns the compiler's libgomp, which goes into the wheel as auditwheel would graft it: slim images lack it."""
    found = subprocess.run(["gcc", "-print-file-name=libgomp.so.1"], capture_output=True, text=True, check=True).stdout.strip()
    if not Path(found).is_absolute():
        sys.exit("llama_wheel: gcc has no libgomp.so.1; install libgomp1.")
    return Path(found)


def pack(tree: Path, libraries: Path, work: Path, python: Path, destination: Path, log_path: Path) -> Path:
    """Lays out the wheel's tree (PEP 427) and packs it into `destination`."""
    info = (tree / "PKG-INFO").read_text()
    version = re.search(r"^Version: (\S+)$", info, re.MULTILINE)
    assert version is not None
    wheel_tree = work / "wheel"
    shutil.copytree(tree / "llama_cpp", wheel_tree / "llama_cpp", ignore=shutil.ignore_patterns("server", "lib"))
    target = wheel_tree / "llama_cpp" / "lib"
    target.mkdir()
    for library in sorted(libraries.glob("lib*.so")):
        shutil.copy2(library, target)
        run(["strip", "--strip-unneeded", str(target / library.name)], log_path)
    shutil.copy2(openmp_runtime(), target)
    dist_info = wheel_tree / f"llama_cpp_python-{version[1]}.dist-info"
    dist_info.mkdir()
    (dist_info / "METADATA").write_text(info)
    shutil.copy2(tree / "LICENSE.md", dist_info)
    tag = f"py3-none-linux_{platform.machine()}"
    (dist_info / "WHEEL").write_text(f"Wheel-Version: 1.0\nGenerator: llama_wheel\nRoot-Is-Purelib: false\nTag: {tag}\n")
    run([str(python), "-m", "wheel", "pack", str(wheel_tree), "--dest-dir", str(work)], log_path)
    (wheel,) = work.glob("llama_cpp_python-*.whl")
    published = destination / wheel.name
    shutil.move(wheel, published.with_suffix(".tmp"))
    return published.with_suffix(".tmp").rename(published)


def build(destination: Path, jobs: int) -> Path:
    with tempfile.TemporaryDirectory(prefix="llama-wheel-") as scratch:
        work = Path(scratch)
        log_path = destination / "build.log"
        log_path.write_bytes(b"")
        print("Fetching llama-cpp-python's sources", flush=True)
        python = create_build_environment(work, log_path)
        tree = fetch_sdist(work, python, log_path)
        if platform.machine() == "x86_64":
            drop_variants(tree)
            load_whole_tile_configuration(tree)
        print(f"Building llama.cpp with {jobs} jobs: 5 to 8 minutes on 2 cores, once on this machine", flush=True)
        with sign_of_life(log_path, 20.0):
            cmake, ninja = (str(python.with_name(name)) for name in ("cmake", "ninja"))
            source = ["-S", str(tree / "vendor" / "llama.cpp"), "-B", str(work / "build"), "-G", "Ninja"]
            run([cmake, *source, f"-DCMAKE_MAKE_PROGRAM={ninja}", *CMAKE_OPTIONS], log_path)
            run([cmake, "--build", str(work / "build"), "--target", "llama", "--parallel", str(jobs)], log_path)
        wheel = pack(tree, work / "build" / "bin", work, python, destination, log_path)
    log_path.unlink()
    return wheel


def ensure_wheel(jobs: int) -> Path:
    """Returns the cached wheel, after building it if need be."""
    destination = cache_dir() / "llama-wheel" / recipe_key()
    with exclusive(destination):
        return cached_wheel(destination) or build(destination, jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="compilers at once")
    print(ensure_wheel(parser.parse_args().jobs))


if __name__ == "__main__":
    main()
