"""Sets up checkov, yamllint and yamale in an environment of their own, once on this machine, and prints its folder of programs.

The environment is what its lock says and is cached beside the other tools. checkov pins old versions of a hundred packages,
which have no place beside those of the two images.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from llama_wheel import ROOT, cache_dir, exclusive

LOCK = ROOT / "requirements" / "chart-tools.txt"
UV = ROOT / ".venv" / "bin" / "uv"


def call(*command: str | Path) -> None:
    done = subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        sys.exit(
            f"{done.stdout}\nchart_tools: '{command[0]} {command[1]} …' ended with {done.returncode}; its message is above."
        )


def ensure() -> Path:
    """Returns the folder with the programs, after setting up their environment if need be."""
    digest = hashlib.sha256(LOCK.read_bytes() + sys.version.encode())
    directory = cache_dir() / "chart-tools" / digest.hexdigest()[:12]
    stamp = directory / "set-up"
    if not stamp.exists():
        with exclusive(directory):
            if not stamp.exists():
                print("[chart-tools] installing checkov, yamllint and yamale", file=sys.stderr, flush=True)
                call(UV, "venv", "--quiet", "--clear", "--python", sys.executable, directory / "venv")
                call(UV, "pip", "sync", "--quiet", "--python", directory / "venv" / "bin" / "python", "--require-hashes", LOCK)
                stamp.touch()
    return directory / "venv" / "bin"


if __name__ == "__main__":
    print(ensure())
