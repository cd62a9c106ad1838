"""The image of a pod's first process, FROM scratch: one static program in an OCI archive, since no registry may be in reach."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from pathlib import Path
from typing import Any

from cluster.commands import run

SOURCE = Path(__file__).parent / "pause" / "pause.c"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
OCI = "application/vnd.oci.image"


def add(tar: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    """Adds a file that is the same whoever makes it, whenever."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), mode
    tar.addfile(member, io.BytesIO(content))


def layer(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            add(tar, name, content, 0o755)
    return buffer.getvalue()


def write_archive(archive: Path, reference: str, files: dict[str, bytes], entrypoint: list[str]) -> None:
    """Writes an OCI archive of an image with these executable files and nothing else."""
    blobs: dict[str, bytes] = {}

    def described(media_type: str, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = content
        return {"mediaType": f"{OCI}.{media_type}", "digest": f"sha256:{digest}", "size": len(content)}

    only_layer = described("layer.v1.tar", layer(files))
    configuration = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Entrypoint": entrypoint, "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [only_layer["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": described("config.v1+json", json.dumps(configuration).encode()),
        "layers": [only_layer],
    }
    entry = described("manifest.v1+json", json.dumps(manifest).encode())
    entry["annotations"] = {"org.opencontainers.image.ref.name": reference}
    index = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": [entry]}
    with tarfile.open(archive, "w") as tar:
        add(tar, "oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
        add(tar, "index.json", json.dumps(index).encode())
        for name, content in blobs.items():
            add(tar, name, content)


def build(archive: Path, reference: str) -> None:
    program = archive.with_suffix(".program")
    run("gcc", "-static", "-Os", "-s", "-Wall", "-Werror", "-o", program, SOURCE)
    write_archive(archive, reference, {"pause": program.read_bytes()}, ["/pause"])
    program.unlink()
