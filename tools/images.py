"""Builds the images of the server, the downloader and the tests' model source: `make images`.

Each gets a context with just what it needs. The tests call ensure_images(), which rebuilds only what has changed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import containers
import llama_wheel
from containers import Engine, Order, say

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = "docker.io/plturrell/nservices"


@dataclass(frozen=True, slots=True)
class Image:
    """`stage` fills a folder with the context. `cached_stage` is the Dockerfile's stage that takes long and changes seldom."""

    name: str
    stage: Callable[[Path], None]
    cached_stage: str | None = None


def _stage_downloader(context: Path) -> None:
    _copy(context, ROOT / "images" / "downloader", "Dockerfile", "requirements.txt", "nlocalmodels_downloader")


def _stage_downloader_s3(context: Path) -> None:
    """Fills the same context but for what is installed."""
    _stage_downloader(context)
    _copy(context, ROOT / "images" / "downloader", "requirements-s3.txt")
    (context / "requirements-s3.txt").replace(context / "requirements.txt")


def _stage_server(context: Path) -> None:
    _copy(context, ROOT / "images" / "server", "Dockerfile", "requirements.txt", "nlocalmodels_server")
    wheel = llama_wheel.ensure_wheel(jobs=len(os.sched_getaffinity(0)))
    _copy(context, wheel.parent, wheel.name)


def _stage_source(context: Path) -> None:
    _copy(context, ROOT / "tests" / "support" / "source_image", "Dockerfile", "serve.py")
    _copy(context / "support", ROOT / "tests" / "support", "__init__.py", "model_source.py")
    tests = str(ROOT / "tests")
    if tests not in sys.path:
        sys.path.append(tests)
    source_image = importlib.import_module("support.source_image")
    for path in source_image.ensure_source_models().iterdir():
        folder = context / ("real-model" if path.name == source_image.REAL_MODEL else "models")
        folder.mkdir(exist_ok=True)
        link(path, folder / path.name)


IMAGES = {
    "server": Image(f"{REPOSITORY}:nLocalModels", _stage_server, "dependencies"),
    "downloader": Image(f"{REPOSITORY}:nLocalModels-downloader", _stage_downloader, "dependencies"),
    "downloader-s3": Image(f"{REPOSITORY}:nLocalModels-downloader-s3", _stage_downloader_s3, "dependencies"),
    "source": Image(f"{REPOSITORY}:test-source", _stage_source),
}


def ensure_images(names: Sequence[str], base_image: str | None = None) -> dict[str, Path]:
    """Returns an archive of each image by its name here, after building what has changed.

    Args:
        base_image: as `--base-image`.
    """
    engine = containers.find_engine()
    base = containers.ensure_base(engine, base_image or os.environ.get("BASE_IMAGE"))
    folder = llama_wheel.cache_dir() / "images"
    archives: dict[str, Path] = {}
    with llama_wheel.exclusive(folder):
        for name in names:
            with _staged(IMAGES[name]) as context:
                archive = folder / f"{name}-{_key(context, engine.image_id(base))}.tar"
                if not archive.exists():
                    _build(engine, name, context, base)
                    containers.remove_others(folder, f"{name}-*.tar", keep=archive)
                    save(engine, IMAGES[name].name, archive)
            archives[name] = archive
    return archives


def build_image(
    engine: Engine, name: str, base_image: str | None = None, version: str | None = None, ca_bundle: Path | None = None
) -> str:
    """Builds an image for others to use, labelled with version and commit, and returns its name."""
    base = containers.ensure_base(engine, base_image)
    args = {"VERSION": version or _version(), "REVISION": _revision()}
    with llama_wheel.exclusive(llama_wheel.cache_dir() / "images"), _staged(IMAGES[name]) as context:
        _build(engine, name, context, base, args, ca_bundle)
    return IMAGES[name].name


def save(engine: Engine, image: str, archive: Path) -> None:
    """Writes an archive, whole or not at all."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    unfinished = archive.with_name(archive.name + ".new")
    unfinished.unlink(missing_ok=True)
    engine.save(image, unfinished)
    unfinished.rename(archive)
    say(f"{image} is in {archive} ({archive.stat().st_size / 1e6:.0f} MB)")


def _build(
    engine: Engine, name: str, context: Path, base: str, args: Mapping[str, str] | None = None, ca_bundle: Path | None = None
) -> None:
    image = IMAGES[name]
    ca_bundle = ca_bundle or containers.default_ca_bundle()
    say(f"building {image.name} on {base}")
    engine.build(Order(image.name, context, {"BASE_IMAGE": base, **(args or {})}, ca_bundle, image.cached_stage))


@contextlib.contextmanager
def _staged(image: Image) -> Iterator[Path]:
    # In the cache, so that large files can be linked instead of copied.
    parent = llama_wheel.cache_dir() / "images"
    for left_behind in parent.glob("context-*"):
        shutil.rmtree(left_behind)
    with tempfile.TemporaryDirectory(dir=parent, prefix="context-") as scratch:
        context = Path(scratch)
        image.stage(context)
        yield context


def _key(context: Path, base_id: str | None) -> str:
    """Returns a short hash of everything that decides the image."""
    digest = hashlib.sha256(f"{base_id}\n".encode())
    for path in sorted(context.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.relative_to(context)} {content}\n".encode())
    return digest.hexdigest()[:12]


def _copy(context: Path, folder: Path, *names: str) -> None:
    """Copies files and folders, with modes and times that do not depend on the checkout: any UID reads an image's files."""
    context.mkdir(exist_ok=True)
    for name in names:
        source, target = folder / name, context / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), copy_function=shutil.copyfile)
        else:
            shutil.copyfile(source, target)
        for path in (target, *target.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
            os.utime(path, (0, 0))


def link(source: Path, target: Path) -> None:
    """Links a file into a context, or copies it where that is not possible."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _revision() -> str:
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def _version() -> str:
    text = (ROOT / "images" / "server" / "nlocalmodels_server" / "__init__.py").read_text()
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    return found[1] if found else "dev"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build images")
    build.add_argument("names", nargs="*", metavar="IMAGE", help=f"of {', '.join(IMAGES)}; by default server and downloader")
    build.add_argument("--archives", type=Path, help="folder to write IMAGE.tar to, for `kind load image-archive` and the like")
    build.add_argument("--version", help="for the image's label; by default the server's")
    add_base_options(build)
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in IMAGES]:
        parser.error(f"no image '{unknown[0]}'; there are {', '.join(IMAGES)}")
    engine = containers.find_engine()
    for name in options.names or ["server", "downloader"]:
        image = build_image(engine, name, options.base_image, options.version, options.ca_bundle)
        if options.archives is not None:
            save(engine, image, options.archives / f"{name}.tar")
        else:
            say(f"to publish it: {engine.push_command(image)}")


def add_base_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base-image",
        default=os.environ.get("BASE_IMAGE"),
        help=f"a slim image with Python 3.11 to stand on; '{containers.DEBIAN_BASE}' makes one of Debian's packages, which is "
        f"also the default where {containers.PUBLIC_BASE} cannot be pulled",
    )
    parser.add_argument(
        "--ca-bundle", type=Path, help="certificates to trust while building; by default $CA_BUNDLE, else this machine's"
    )


if __name__ == "__main__":
    main()
