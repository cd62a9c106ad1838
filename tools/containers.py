"""Builds container images and writes them to archives: with Docker where an engine answers, else with buildah.

buildah keeps its storage in the cache folder, apart from any other on the machine, and is installed when it is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Protocol

import llama_wheel

# The packages of commands that are not named like them.
PACKAGES = {"qemu-x86_64": "qemu-user"}
HOST_CA_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")

PUBLIC_BASE = "docker.io/library/python:3.11-slim-bookworm"
# The base of images where no registry is in reach: `BASE_IMAGE=debian-base`.
DEBIAN_BASE = "debian-base"
DEBIAN_SUITE = "bookworm"
DEBIAN_OPTIONS = (
    "--variant=minbase",
    "--include=ca-certificates,python3,python3-venv",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
)


def say(text: str) -> None:
    print(f"[images] {text}", flush=True)


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be built. `cached_stage` is a stage to keep, so that later builds find its layers."""

    image: str
    context: Path
    args: Mapping[str, str] = field(default_factory=dict)
    ca_bundle: Path | None = None
    cached_stage: str | None = None


class Engine(Protocol):
    def build(self, order: Order) -> None:
        """Builds the context's Dockerfile; SystemExit with the engine's own message when that fails."""

    def image_id(self, image: str) -> str | None:
        """Returns what identifies the image of that name that is there, if one is."""

    def pull(self, image: str) -> bool:
        """Fetches an image from its registry; False when that is not possible."""

    def save(self, image: str, archive: Path) -> None:
        """Writes an archive that `docker load`, `ctr images import` and `kind load image-archive` take."""

    def load(self, archive: Path) -> None:
        """Reads such an archive."""

    def push_command(self, image: str) -> str:
        """Returns how a person brings an image to its registry."""


class Docker:
    def build(self, order: Order) -> None:
        proxies = [argument for name in PROXY_VARIABLES if name in os.environ for argument in ("--build-arg", name)]
        environ = {**os.environ, "DOCKER_BUILDKIT": "1", "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}
        _run(["docker", "build", *_options(order), *proxies, "--tag", order.image, str(order.context)], environ)

    def image_id(self, image: str) -> str | None:
        return _output("docker", "image", "inspect", "--format", "{{.Id}}", image)

    def pull(self, image: str) -> bool:
        return _output("docker", "pull", "--quiet", image) is not None

    def save(self, image: str, archive: Path) -> None:
        _run(["docker", "save", "--output", str(archive), image])

    def load(self, archive: Path) -> None:
        _run(["docker", "load", "--quiet", "--input", str(archive)])

    def push_command(self, image: str) -> str:
        return f"docker push {image}"


class Buildah:
    def __init__(self) -> None:
        self.folder = llama_wheel.cache_dir() / "containers"
        self.command = ["buildah", "--root", str(self.folder / "storage"), "--runroot", str(self.folder / "run")]

    def build(self, order: Order) -> None:
        # Low limits can always be set; buildah's own defaults want a right that containers seldom have.
        options = ["--layers", "--pull=false", "--isolation", "chroot"]
        options += ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]
        build = [*self.command, "build", *options, *_options(order)]
        # One at a time: pruning would take away what another build is about to use.
        with llama_wheel.exclusive(self.folder):
            if order.cached_stage is not None:
                name = f"localhost/nlocalmodels/{order.cached_stage}:{order.image.rpartition(':')[2]}"
                _run([*build, "--target", order.cached_stage, "--tag", name, str(order.context)])
            _run([*build, "--tag", order.image, str(order.context)])
            self._clean_up()

    def image_id(self, image: str) -> str | None:
        return _output(*self.command, "inspect", "--type", "image", "--format", "{{.FromImageID}}", image)

    def pull(self, image: str) -> bool:
        return _output(*self.command, "pull", "--quiet", image) is not None

    def save(self, image: str, archive: Path) -> None:
        _run([*self.command, "push", "--quiet", image, f"docker-archive:{archive}:{image}"])

    def load(self, archive: Path) -> None:
        _run([*self.command, "pull", "--quiet", f"docker-archive:{archive}"])

    def _clean_up(self) -> None:
        """Removes what broken-off builds left, and images that have lost their name to a newer one and that nothing runs."""
        names = (_output(*self.command, "containers", "--noheading", "--format", "{{.ContainerName}}") or "").split()
        if left_behind := [name for name in names if "-working-container" in name]:
            _output(*self.command, "rm", *left_behind)
        _output(*self.command, "rmi", "--prune")

    def push_command(self, image: str) -> str:
        return f"{' '.join(self.command)} push {image} docker://{image}"


@cache
def docker_answers() -> bool:
    try:
        return subprocess.run(["docker", "version"], capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def find_engine() -> Engine:
    if docker_answers():
        return Docker()
    require_commands("buildah", why="no Docker engine answers")
    return Buildah()


def require_commands(*commands: str, why: str) -> None:
    """Installs what is missing, which it says; SystemExit where that is not possible."""
    missing = sorted({PACKAGES.get(command, command) for command in commands if shutil.which(command) is None})
    if not missing:
        return
    as_root = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]
    if not all(shutil.which(command) for command in ("apt-get", *as_root[:1])):
        sys.exit(f"[images] {why}, and there is no apt-get to install {' '.join(missing)}: install them, and try again.")
    say(f"{why}: installing {' '.join(missing)} with apt-get")
    options = ["-qq", "-o", "DPkg::Lock::Timeout=300"]
    _run([*as_root, "apt-get", "update", *options])
    _run([*as_root, "apt-get", "install", *options, "--yes", "--no-install-recommends", *missing])


def default_ca_bundle() -> Path | None:
    """Returns the certificates to trust during a build: this machine's, since a proxy may inspect what is fetched."""
    candidates = [os.environ.get("CA_BUNDLE", ""), os.environ.get("SSL_CERT_FILE", ""), *HOST_CA_BUNDLES]
    return next((Path(candidate) for candidate in candidates if candidate and Path(candidate).is_file()), None)


def ensure_base(engine: Engine, wanted: str | None = None) -> str:
    """Returns the name of a base that is there: the wanted one, else Python's own slim image, else one of Debian's packages."""
    if wanted == DEBIAN_BASE:
        return ensure_debian_base(engine)
    image = wanted or PUBLIC_BASE
    if engine.image_id(image) is not None or engine.pull(image):
        return image
    if wanted:
        sys.exit(
            f"[images] BASE_IMAGE: '{image}' is not here and cannot be pulled; {DEBIAN_BASE} makes one of Debian's packages."
        )
    say(f"{image} cannot be pulled; taking a base made of Debian's packages instead (BASE_IMAGE= chooses another)")
    return ensure_debian_base(engine)


def ensure_debian_base(engine: Engine) -> str:
    """Returns the name of a slim Debian with Python, made from Debian's packages and kept in the cache; needs no registry."""
    key = hashlib.sha256(json.dumps([DEBIAN_SUITE, *DEBIAN_OPTIONS]).encode()).hexdigest()[:12]
    image = f"localhost/nlocalmodels/{DEBIAN_BASE}:{key}"
    folder = llama_wheel.cache_dir() / "test-base"
    rootfs = folder / f"{key}.tar"
    with llama_wheel.exclusive(folder):
        if not rootfs.exists():
            require_commands("mmdebstrap", why="a base image is made")
            say("making a base image from Debian packages: about a minute, once on this machine")
            remove_others(folder, "*.tar", keep=rootfs)
            unfinished = rootfs.with_suffix(".new.tar")
            _run(["mmdebstrap", "--quiet", *DEBIAN_OPTIONS, DEBIAN_SUITE, str(unfinished)])
            unfinished.rename(rootfs)
        if engine.image_id(image) is None:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                context = Path(scratch)
                os.link(rootfs, context / "rootfs.tar")
                (context / "Dockerfile").write_text('FROM scratch\nADD rootfs.tar /\nCMD ["/bin/sh"]\n')
                engine.build(Order(image, context))
    return image


def remove_others(folder: Path, pattern: str, keep: Path) -> None:
    for path in folder.glob(pattern):
        if path != keep:
            path.unlink()


def _options(order: Order) -> list[str]:
    options = [argument for name, value in order.args.items() for argument in ("--build-arg", f"{name}={value}")]
    if "PIP_INDEX_URL" in os.environ:
        options += ["--build-arg", "PIP_INDEX_URL"]
    if order.ca_bundle is not None:
        options += ["--secret", f"id=ca-bundle,src={order.ca_bundle}"]
    return options


def _output(*command: str) -> str | None:
    """Returns what a command says, None when it fails."""
    ended = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    return ended.stdout.strip() if ended.returncode == 0 else None


def _run(command: Sequence[str], environ: Mapping[str, str] | None = None) -> None:
    """Runs a command in silence; SystemExit with the end of what it said when it fails."""
    ended = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environ, text=True, check=False
    )
    if ended.returncode:
        tail = "\n".join(ended.stdout.splitlines()[-30:])
        sys.exit(f"{tail}\n[images] '{' '.join(command[:8])} …' ended with {ended.returncode}; its message is above.")
