"""Brings image archives into the cluster's containerd."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

from cluster import layout
from cluster.commands import ClusterError, run

CTR = ("ctr", "--address", str(layout.CONTAINERD_SOCKET), "--namespace", "k8s.io", "images")


def normalized_reference(reference: str) -> str:
    """Returns the name under which a pod's image is looked up: with its registry, Docker's when it names none."""
    registry, slash, _ = reference.partition("/")
    if slash and ("." in registry or ":" in registry or registry == "localhost"):
        return reference
    return f"docker.io/{reference}" if slash else f"docker.io/library/{reference}"


def archive_references(archive: Path) -> list[str]:
    """Returns the names of the images in an OCI archive or an archive of `docker save`."""
    try:
        with tarfile.open(archive) as tar:
            names = tar.getnames()
            listing = next((name for name in ("manifest.json", "index.json") if name in names), None)
            file = tar.extractfile(listing) if listing else None
            if file is None:
                raise ClusterError(f"{archive} is no image archive; make one with `buildah push IMAGE oci-archive:FILE:NAME`.")
            content = json.load(file)
    except (OSError, tarfile.TarError) as error:
        raise ClusterError(f"{archive} cannot be read as an image archive: {error}") from error
    if listing == "manifest.json":
        return [str(name) for image in content for name in image.get("RepoTags") or []]
    annotations = (entry.get("annotations") or {} for entry in content["manifests"])
    key = "org.opencontainers.image.ref.name"
    return [str(named[key]) for named in annotations if ":" in named.get(key, "")]


def renamed_references(archive: Path) -> dict[str, str]:
    """Returns the names in the archive under which no pod would find their image, and what they must be called."""
    references = archive_references(archive)
    if not references:
        raise ClusterError(f"{archive} names no image; write it with a name: `buildah push IMAGE oci-archive:FILE:NAME:TAG`.")
    full = {reference: normalized_reference(reference) for reference in references}
    return {reference: name for reference, name in full.items() if name != reference}


def import_images(archives: Sequence[Path]) -> None:
    for archive in archives:
        renamed = renamed_references(archive)
        run(*CTR, "import", archive)
        for reference, name in renamed.items():
            run(*CTR, "tag", "--force", reference, name)
            run(*CTR, "remove", reference)


def has_image(reference: str) -> bool:
    return reference in run(*CTR, "list", "--quiet").split()
