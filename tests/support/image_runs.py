"""Reads image archives, and runs images as a restricted pod would: read-only root, no rights, PID 1, under any UID."""

from __future__ import annotations

import json
import subprocess
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import containers

# Like the kubelet's defaults, but that nothing can be written.
_MOUNTS: list[dict[str, Any]] = [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {
        "destination": "/dev",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
    },
    {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "size=65536k"]},
    {"destination": "/sys", "type": "none", "source": "/sys", "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]},
]
_NAMESPACES = ("pid", "ipc", "uts", "mount")


@dataclass(frozen=True)
class Layer:
    created_by: str
    members: tuple[tarfile.TarInfo, ...]

    @property
    def size_bytes(self) -> int:
        return sum(member.size for member in self.members)


class ImageArchive:
    """An archive as `docker save` writes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with tarfile.open(path) as archive:
            (self._manifest,) = json.loads(_content(archive, "manifest.json"))
            document = json.loads(_content(archive, self._manifest["Config"]))
        self.names: list[str] = self._manifest["RepoTags"]
        self.config: dict[str, Any] = document["config"]
        self._history = [entry for entry in document["history"] if not entry.get("empty_layer")]

    def layers(self) -> list[Layer]:
        """Returns all layers, the base's first."""
        found = []
        with tarfile.open(self._path) as archive:
            for name, entry in zip(self._manifest["Layers"], self._history, strict=True):
                with tarfile.open(fileobj=archive.extractfile(name)) as layer:
                    found.append(Layer(entry.get("created_by", ""), tuple(layer.getmembers())))
        return found

    def read(self, layer_index: int, name: str) -> bytes:
        with (
            tarfile.open(self._path) as archive,
            tarfile.open(fileobj=archive.extractfile(self._manifest["Layers"][layer_index])) as layer,
        ):
            return _content(layer, name)


def _content(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None
    return file.read()


@dataclass(frozen=True)
class Run:
    """What to run, and as whom. `mounts` are folders by their path inside; a path that ends in `:ro` is read-only."""

    image: str
    archive: Path
    arguments: Sequence[str] = ()
    entrypoint: Sequence[str] | None = None
    environ: Mapping[str, str] = field(default_factory=dict)
    mounts: Mapping[str, Path] = field(default_factory=dict)
    user: tuple[int, int] = (65534, 65534)


@dataclass
class Container:
    process: subprocess.Popen[str]
    log_path: Path
    _kill: Callable[[str], None]

    def log(self) -> str:
        return self.log_path.read_text()

    def wait_for(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        """Polls until the condition holds; what the container has said is the message when it does not."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def terminate(self) -> int:
        """Sends SIGTERM to PID 1, and returns its exit code."""
        self._kill("TERM")
        return self.process.wait(60)


@contextmanager
def running(run: Run, log_path: Path) -> Iterator[Container]:
    """Starts a container on the host's network, and ends it if it has not ended."""
    start = _docker if containers.docker_answers() else _runc
    with start(run) as (command, kill), log_path.open("w") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, text=True)
        try:
            yield Container(process, log_path, kill)
        finally:
            if process.poll() is None:
                kill("KILL")
                process.wait(60)


def run_to_end(run: Run, log_path: Path) -> tuple[int, str]:
    """Returns the exit code and what was said."""
    with running(run, log_path) as container:
        code = container.process.wait(120)
        return code, container.log()


@contextmanager
def _docker(run: Run) -> Iterator[tuple[list[str], Callable[[str], None]]]:
    containers.Docker().load(run.archive)
    name = f"nlocalmodels-{uuid.uuid4().hex[:12]}"
    command = ["docker", "run", "--rm", "--name", name, "--network", "host", "--read-only", "--cap-drop", "ALL"]
    command += ["--security-opt", "no-new-privileges", "--user", f"{run.user[0]}:{run.user[1]}"]
    for target, folder in run.mounts.items():
        command += ["--volume", f"{folder}:{target}"]
    for variable, value in run.environ.items():
        command += ["--env", f"{variable}={value}"]
    arguments = list(run.arguments)
    if run.entrypoint is not None:
        command += ["--entrypoint", run.entrypoint[0]]
        arguments = [*run.entrypoint[1:], *arguments]
    yield [*command, run.image, *arguments], lambda signal: _quietly("docker", "kill", "--signal", signal, name)


@contextmanager
def _runc(run: Run) -> Iterator[tuple[list[str], Callable[[str], None]]]:
    containers.require_commands("buildah", "runc", why="images are run")
    buildah = containers.Buildah()
    buildah.load(run.archive)
    name = f"nlocalmodels-{uuid.uuid4().hex[:12]}"
    _quietly(*buildah.command, "from", "--name", name, run.image)
    try:
        root = subprocess.run([*buildah.command, "mount", name], capture_output=True, text=True, check=True).stdout.strip()
        with tempfile.TemporaryDirectory() as bundle:
            Path(bundle, "config.json").write_text(json.dumps(_runtime_config(run, root)))
            runc = ["runc", "--root", f"{bundle}/state"]
            yield [*runc, "run", "--bundle", bundle, name], lambda signal: _quietly(*runc, "kill", name, signal)
    finally:
        _quietly(*buildah.command, "rm", name)


def _runtime_config(run: Run, root: str) -> dict[str, Any]:
    """Returns what runc is to do, by the OCI runtime specification."""
    config = ImageArchive(run.archive).config
    variables = [*config["Env"], *(f"{name}={value}" for name, value in run.environ.items())]
    binds = [
        {
            "destination": target.removesuffix(":ro"),
            "type": "none",
            "source": str(folder),
            "options": ["rbind", "ro" if target.endswith(":ro") else "rw"],
        }
        for target, folder in run.mounts.items()
    ]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": run.user[0], "gid": run.user[1]},
            "args": [*(run.entrypoint or config["Entrypoint"]), *run.arguments],
            "env": variables,
            "cwd": config.get("WorkingDir") or "/",
            "noNewPrivileges": True,
        },
        "root": {"path": root, "readonly": True},
        "mounts": [*_MOUNTS, *binds],
        "linux": {"namespaces": [{"type": kind} for kind in _NAMESPACES]},
    }


def _quietly(*command: str) -> None:
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
