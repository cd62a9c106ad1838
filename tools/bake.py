"""Puts models into an image: `make bake MODELS="ids, sets or hf:// sources" IMAGE=registry/name:tag`.

The downloader fetches them into the cache, so that baking again fetches nothing. Each model file is a layer of its own, which a
registry and a node keep when other models change; the set's manifest comes last.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import containers
import images
import llama_wheel
import run
from containers import Order
from nlocalmodels_downloader.config import load_config
from nlocalmodels_downloader.errors import ConfigError
from nlocalmodels_downloader.manifest import ManifestEntry, manifest_paths, read_manifest
from nlocalmodels_downloader.volume import STATE_FOLDER

# An image reference with a tag: what a chart's repository and tag are taken from.
_IMAGE = re.compile(r"(?P<repository>[a-z0-9][a-z0-9._:/-]*):(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})")
_SERVER_LAYOUT, _MODELS_LAYOUT = "server", "models"
KEPT_SETS = 3


@dataclass(frozen=True, slots=True)
class Declared:
    """What belongs into the image: the catalogue's set in the chart's words, and the entries of downloads.yaml in its order."""

    set_name: str
    entries: list[dict[str, Any]]
    settings: dict[str, Any]


def say(text: str) -> None:
    print(f"[bake] {text}", flush=True)


def declared_by_words(words: Sequence[str]) -> Declared:
    """Resolves as the chart does: a set in its own order, then everything else by id, so that the set's id is the chart's."""
    catalogue = yaml.safe_load(run.CATALOGUE.read_text())
    set_name = next((word for word in words if word in catalogue["sets"]), "none")
    set_ids = catalogue["sets"].get(set_name, [])
    by_id = {entry["id"]: entry for entry in run.declared_models(list(words), catalogue)}
    others = sorted(model_id for model_id in by_id if model_id not in set_ids)
    return Declared(set_name, [by_id[model_id] for model_id in (*set_ids, *others)], {})


def declared_by_config(path: Path) -> Declared:
    """Takes the models of a downloads.yaml. Where they go and what is pruned is decided here."""
    try:
        load_config(path)
    except ConfigError as error:
        sys.exit(f"[bake] {error}")
    document = yaml.safe_load(path.read_text())
    entries = sorted(document["models"], key=lambda entry: str(entry["id"]))
    return Declared("none", entries, {key: document[key] for key in document if key not in ("models", "modelPath", "prune")})


def fetch(declared: Declared, folder: Path) -> Path:
    """Runs the downloader and returns the set's manifest."""
    run.download(declared.entries, folder, **declared.settings, prune={"keepSets": KEPT_SETS})
    return manifest_paths(folder / STATE_FOLDER / "sets")[0]


def stage(context: Path, folder: Path, manifest: Path, base: str) -> None:
    """Fills the context: the models, the manifest, and a Dockerfile with a layer for each."""
    target = "/" if base == "scratch" else "/app/models/"
    lines = [f"FROM {base}"]
    for entry in read_manifest(manifest):
        for file in entry.files:
            images.link(folder / file.file, context / file.file)
            lines.append(f"COPY {json.dumps([file.file, target])}")
    state = context / STATE_FOLDER
    (state / "sets").mkdir(parents=True)
    shutil.copyfile(manifest, state / "sets" / manifest.name)
    for path in (state, state / "sets"):
        path.chmod(0o755)
    (state / "sets" / manifest.name).chmod(0o644)
    # Fetched again, the set is the same, and so is its layer.
    os.utime(state / "sets" / manifest.name, (0, 0))
    lines.append(f"COPY {json.dumps([STATE_FOLDER, target + STATE_FOLDER])}")
    lines.append(f'LABEL nlocalmodels.set="{manifest.stem}"')
    (context / "Dockerfile").write_text("\n".join(lines) + "\n")


def values(declared: Declared, entries: Sequence[ManifestEntry], image: str, layout: str) -> dict[str, Any]:
    """Returns the chart's values for the image."""
    catalogue = yaml.safe_load(run.CATALOGUE.read_text())
    set_ids = catalogue["sets"].get(declared.set_name, [])
    sources = {entry["id"]: entry for entry in declared.entries}
    added: dict[str, Any] = {}
    for entry in entries:
        known = catalogue["models"].get(entry.id, {})
        if entry.id in set_ids:
            continue
        if (known.get("file"), known.get("sha256")) == (entry.file, entry.sha256):
            added[entry.id] = {}
            continue
        # Digest and size as they were found, also where they had not been declared.
        added[entry.id] = {
            **{key: value for key, value in sources[entry.id].items() if key not in ("id", "mirrors", "shards")},
            "sha256": entry.sha256,
            "sizeBytes": entry.size_bytes,
        }
        if entry.shards:
            shard_sources = {shard["file"]: shard["source"] for shard in sources[entry.id]["shards"]}
            added[entry.id]["shards"] = [
                {"file": s.file, "source": shard_sources[s.file], "sha256": s.sha256, "sizeBytes": s.size_bytes}
                for s in entry.shards
            ]
    repository, _, tag = image.rpartition(":")
    baked = {"image": {"repository": repository, "tag": tag}, "mount": "volume" if layout == _MODELS_LAYOUT else "container"}
    return {"models": {"set": declared.set_name, "add": added}, "storage": {"strategy": "baked", "baked": baked}}


def bake(declared: Declared, image: str, layout: str, base: str, folder: Path, archive: Path | None) -> None:
    engine = containers.find_engine()
    # On the filesystem of the models, so that they can be linked instead of copied.
    work = folder / ".bake"
    with llama_wheel.exclusive(work):
        manifest = fetch(declared, folder)
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            stage(Path(scratch), folder, manifest, base)
            say(f"building {image}")
            engine.build(Order(image, Path(scratch)))
        entries = read_manifest(manifest)
    if archive is not None:
        images.save(engine, image, archive)
    else:
        say(f"{image} is built; to publish it: {engine.push_command(image)}")
    say(f"it holds set {manifest.stem}: {', '.join(entry.file for entry in entries)}")
    say("Install it with these values (helm install -f FILE):")
    print("\n" + yaml.safe_dump(values(declared, entries, image, layout), sort_keys=False), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--models", help="ids or sets of the catalogue, or hf://ORG/REPO/FILE@COMMIT")
    what.add_argument("--config", type=Path, metavar="downloads.yaml", help="a list as the downloader takes it")
    parser.add_argument("--image", required=True, metavar="NAME:TAG", help="what the image is to be called")
    parser.add_argument(
        "--layout",
        choices=(_SERVER_LAYOUT, _MODELS_LAYOUT),
        default=_SERVER_LAYOUT,
        help="server: the server's image with the models in it; models: they alone, for a Kubernetes image volume",
    )
    parser.add_argument("--archive", type=Path, metavar="FILE", help="write it to an archive too")
    parser.add_argument("--server-image", help="put the models into this image instead of building the server's")
    parser.add_argument(
        "--model-path",
        type=Path,
        default=llama_wheel.cache_dir() / "bake" / "models",
        help="where the models are kept between bakes, those of the last three sets",
    )
    images.add_base_options(parser)
    options = parser.parse_args()
    if not _IMAGE.fullmatch(options.image):
        sys.exit(f"[bake] IMAGE: '{options.image}' is no image name; give one like registry.example.com/models:starter.")
    declared = declared_by_config(options.config) if options.config else declared_by_words(options.models.split())
    if not declared.entries:
        sys.exit("[bake] MODELS: names no model; give ids or sets of the catalogue, or hf://ORG/REPO/FILE@COMMIT.")
    if options.layout == _MODELS_LAYOUT:
        base = "scratch"
    elif options.server_image:
        base = options.server_image
    else:
        base = images.build_image(containers.find_engine(), "server", options.base_image, ca_bundle=options.ca_bundle)
    bake(declared, options.image, options.layout, base, options.model_path.resolve(), options.archive)


if __name__ == "__main__":
    main()
