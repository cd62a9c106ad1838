"""Sets up .venv with everything pinned, and says what it does. Ends at once when there is nothing to do."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import llama_wheel

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "set-up"
LOCKS = [ROOT / "requirements" / name for name in ("bootstrap.txt", "dev.txt")]
PACKAGES = [ROOT / "images" / "downloader", ROOT / "images" / "server"]


def wanted_state() -> str:
    """Returns what decides the environment: every lock, the wheel's recipe, the interpreter, and where the checkout lies."""
    digest = hashlib.sha256()
    for path in (*LOCKS, Path(__file__)):
        digest.update(path.read_bytes())
    for text in (llama_wheel.recipe_key(), sys.version, str(ROOT)):
        digest.update(text.encode())
    return digest.hexdigest()


def step(text: str) -> None:
    print(f"[set-up] {text}", flush=True)


def call(*command: str | Path) -> None:
    code = subprocess.run([str(part) for part in command], check=False).returncode
    if code:
        sys.exit(f"[set-up] '{' '.join(str(part) for part in command[:4])} …' ended with {code}; its message is above.")


def install() -> None:
    step("creating .venv")
    try:
        venv.create(VENV, with_pip=True, clear=True)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"[set-up] {sys.executable} cannot create a virtual environment ({error}); on Debian install python3-venv.")
    step("installing the locked packages")
    call(PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r", LOCKS[0])
    call(VENV / "bin" / "uv", "pip", "sync", "--quiet", "--python", PYTHON, "--require-hashes", *LOCKS)
    step("llama-cpp-python: looking for its wheel")
    wheel = llama_wheel.ensure_wheel(jobs=len(os.sched_getaffinity(0)))
    call(VENV / "bin" / "uv", "pip", "install", "--quiet", "--python", PYTHON, "--no-deps", "--offline", wheel)
    site_packages = Path(sysconfig.get_path("purelib", vars={"base": str(VENV), "platbase": str(VENV)}))
    (site_packages / "nlocalmodels.pth").write_text("".join(f"{package}\n" for package in PACKAGES))


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036  (this very script runs on whatever python3 is)
        sys.exit(
            f"[set-up] Python 3.11 or newer is needed, this is {sys.version.split()[0]}; call make with PYTHON=python3.11."
        )
    state = wanted_state()
    if STAMP.exists() and STAMP.read_text() == state:
        return
    install()
    STAMP.write_text(state)
    step("done")


if __name__ == "__main__":
    main()
