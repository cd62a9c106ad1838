"""OCI manifests: which layer of an artifact is the model. Pure (OCI image specification 1.1)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from nlocalmodels_downloader.errors import CorruptError, GoneError, RefusedError

# What is asked for. An index is taken only to say what it lists.
MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
# Where ORAS and ModelPack keep the name of a file.
_NAME_ANNOTATIONS = ("org.opencontainers.image.title", "org.cncf.model.filepath")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Layer:
    """A file of an artifact. `name` is empty where the manifest states none."""

    sha256: str
    size_bytes: int
    media_type: str
    name: str

    @property
    def is_gguf(self) -> bool:
        return self.name.lower().endswith(".gguf") or "gguf" in self.media_type.lower()

    def __str__(self) -> str:
        return self.name or f"{self.media_type} sha256:{self.sha256}"


def model_layer(body: bytes, where: str, file: str | None) -> Layer:
    """Returns the layer with the model.

    Args:
        where: the artifact, for messages.
        file: its name in the artifact; None if it is the only GGUF file there.

    Raises:
        CorruptError: the manifest is malformed.
        GoneError: there is no such file, or no GGUF file at all.
        RefusedError: an index, or several files and no name to choose by.
    """
    manifest = _parsed(body, where)
    if isinstance(manifest.get("manifests"), list):
        listed = [str(entry.get("digest")) for entry in manifest["manifests"] if isinstance(entry, dict)]
        raise RefusedError(f"{where} is an index of several artifacts; name one of them: {', '.join(listed) or 'it is empty'}.")
    entries = manifest.get("layers")
    layers = [_layer(entry, where) for entry in entries] if isinstance(entries, list) else []
    found = [layer for layer in layers if (layer.is_gguf if file is None else layer.name == file)]
    if not found:
        wanted = "a GGUF file" if file is None else f"'{file}'"
        raise GoneError(f"{where} does not hold {wanted}, but {_listed(layers)}; correct the source.")
    if len(found) > 1:
        raise RefusedError(f"{where} holds several: {_listed(found)}; add #FILE to the source.")
    return found[0]


def _parsed(body: bytes, where: str) -> dict[str, Any]:
    try:
        manifest = json.loads(body)
    except (ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict):
        raise CorruptError(f"{where}: the registry's answer is no manifest; check the address.")
    return manifest


def _layer(entry: object, where: str) -> Layer:
    fields = entry if isinstance(entry, dict) else {}
    digest, size_bytes = _DIGEST.fullmatch(str(fields.get("digest"))), fields.get("size")
    if digest is None or not isinstance(size_bytes, int) or size_bytes < 0:
        raise CorruptError(f"{where}: the manifest has a layer without a sha256 digest and a size; push the artifact again.")
    annotations = fields.get("annotations") or {}
    names = [annotations[key] for key in _NAME_ANNOTATIONS if key in annotations] if isinstance(annotations, dict) else []
    return Layer(digest[1], size_bytes, str(fields.get("mediaType")), str(names[0]) if names else "")


def _listed(layers: list[Layer]) -> str:
    return ", ".join(map(str, layers)) or "no file at all"
