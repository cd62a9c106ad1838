"""Who is measured: the command line of each, set to its best and to write to the same folder."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from measure import BenchError
from origin import COMMIT, REPO, BulkFile, Origin

HERE = Path(__file__).resolve().parent
PEERS = HERE / "peers.txt"
OURS = "nlocalmodels_downloader"
PACKAGE = HERE.parent.parent / "images" / "downloader" / OURS

_HUB_SCRIPT = "import sys; from huggingface_hub import hf_hub_download as get; get(*sys.argv[1:3], revision=sys.argv[3])"


@dataclass(frozen=True, slots=True)
class Contender:
    """A command that brings one file. `result` is where the file is to be afterwards."""

    name: str
    verifies: bool
    command: list[str]
    result: Path
    environ: dict[str, str] = field(default_factory=dict)


def clean_environ(work: Path) -> dict[str, str]:
    """Returns an environment without proxies, tokens and settings of the one who runs the benchmark."""
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(work / "home"), "TMPDIR": str(work), "LC_ALL": "C.UTF-8"}


def install_peers(work: Path) -> Path:
    """Installs the pinned huggingface_hub into a throw-away environment and returns its Python."""
    uv = Path(sys.executable).with_name("uv")
    python = work / "peers" / "bin" / "python"
    for command in (
        [str(uv), "venv", "--quiet", "--python", sys.executable, str(work / "peers")],
        [str(uv), "pip", "sync", "--quiet", "--compile-bytecode", "--require-hashes", "--python", str(python), str(PEERS)],
    ):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise BenchError(f"{result.stderr}\nhuggingface_hub was not installed; uv's message is above.")
    return python


def copy_ours(source: Path, work: Path) -> None:
    """Copies the package, so that one benchmark measures one version even if somebody edits meanwhile, and starts it once."""
    shutil.copytree(source, work / "ours" / OURS, ignore=shutil.ignore_patterns("__pycache__"))
    environ = {**clean_environ(work), "PYTHONPATH": str(work / "ours")}
    command = [sys.executable, "-m", OURS, "--help"]
    result = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BenchError(f"{result.stderr}\n{OURS} does not start; its message is above.")


class Course:
    """All contenders for one file at one address. `target` is emptied before each run."""

    def __init__(self, work: Path, origin: Origin, file: BulkFile, location: str) -> None:
        self._work = work
        self._origin = origin
        self._file = file
        self._url = f"{origin.url}/{location}/{file.path.name}"
        self._name = f"{location}-{file.path.stem}"
        self.target = work / "target"

    def curl(self) -> Contender:
        return Contender("curl", False, self._curl_command(), self._result)

    def curl_and_sha256sum(self) -> Contender:
        line = shlex.quote(f"{self._file.sha256}  {self._result}")
        script = f"{shlex.join(self._curl_command())} && echo {line} | sha256sum --check --quiet"
        return Contender("curl, then sha256sum", True, ["sh", "-c", script], self._result)

    def aria2c(self, verifies: bool) -> Contender:
        command = ["aria2c", "--no-conf", "--quiet", "-x8", "-s8", "--min-split-size=1M", "--file-allocation=none"]
        command += [f"--ca-certificate={self._origin.certificate}", f"--dir={self.target}", f"--out={self._result.name}"]
        command += [f"--checksum=sha-256={self._file.sha256}"] if verifies else []
        return Contender("aria2c -x8, --checksum" if verifies else "aria2c -x8", verifies, [*command, self._url], self._result)

    def hub(self, python: Path) -> Contender:
        environ = {
            "HF_ENDPOINT": self._origin.url,
            "HF_HOME": str(self._work / "home" / "hub"),
            "HF_HUB_CACHE": str(self.target),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "SSL_CERT_FILE": str(self._origin.certificate),
        }
        result = self.target / f"models--{REPO.replace('/', '--')}" / "snapshots" / COMMIT / self._file.path.name
        command = [str(python), "-c", _HUB_SCRIPT, REPO, self._file.path.name, COMMIT]
        return Contender("huggingface_hub", False, command, result, environ)

    def ours(self) -> Contender:
        config = self._work / f"downloads-{self._name}.yaml"
        model = {
            "id": "bulk",
            "file": self._file.path.name,
            "source": self._url,
            "sha256": self._file.sha256,
            "sizeBytes": self._file.size_bytes,
        }
        # JSON is YAML, too.
        config.write_text(json.dumps({"modelPath": str(self.target), "models": [model]}))
        environ = {
            "PYTHONPATH": str(self._work / "ours"),
            "REQUESTS_CA_BUNDLE": str(self._origin.certificate),
            "POD_UID": "bench",
            "TERMINATION_MESSAGE_PATH": str(self._work / "termination"),
        }
        command = [sys.executable, "-m", OURS, "sync", "--config", str(config)]
        return Contender(OURS, True, command, self._result, environ)

    @property
    def _result(self) -> Path:
        return self.target / self._file.path.name

    def _curl_command(self) -> list[str]:
        options = ["--disable", "--silent", "--show-error", "--fail", "--cacert", str(self._origin.certificate)]
        return ["curl", *options, "--output", str(self._result), self._url]


def versions(hub_python: Path) -> list[tuple[str, str]]:
    """Returns each program with its version."""
    script = "import platform, ssl; print(platform.python_version()); print(ssl.OPENSSL_VERSION)"
    python_version, ssl_version = _first_lines([sys.executable, "-c", script], 2)
    (hub_version,) = _first_lines([str(hub_python), "-c", "import huggingface_hub as hub; print(hub.__version__)"])
    first_words: list[tuple[str, list[str], Callable[[str], str]]] = [
        ("curl", ["curl", "--version"], lambda line: " ".join(line.split()[1:2])),
        ("aria2c", ["aria2c", "--version"], lambda line: line.split()[-1]),
        ("nginx", ["nginx", "-v"], lambda line: line.rpartition("/")[2]),
        ("OpenSSL (program)", ["openssl", "version"], lambda line: line.split()[1]),
    ]
    found = [(name, pick(_first_lines(command)[0])) for name, command, pick in first_words]
    return [*found, ("huggingface_hub", hub_version), ("Python", python_version), ("OpenSSL (Python)", ssl_version.split()[1])]


def _first_lines(command: list[str], num_lines: int = 1) -> list[str]:
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    return result.stdout.splitlines()[:num_lines]
