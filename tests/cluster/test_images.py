"""Image archives and the names in them."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest

from cluster import images, pause_image
from cluster.commands import ClusterError


@pytest.mark.parametrize(
    ("reference", "full"),
    [
        ("pause:1", "docker.io/library/pause:1"),
        ("plturrell/nservices:nLocalModels", "docker.io/plturrell/nservices:nLocalModels"),
        ("localhost/pause:1", "localhost/pause:1"),
        ("registry.example/models:1", "registry.example/models:1"),
        ("registry:5000/models:1", "registry:5000/models:1"),
    ],
)
def test_names_mean_what_they_mean_in_a_pod(reference: str, full: str) -> None:
    assert images.normalized_reference(reference) == full


def test_written_archive_is_whole_and_bears_its_name(tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    pause_image.write_archive(archive, "models/one:1", {"one": b"program"}, ["/one"])
    assert images.archive_references(archive) == ["models/one:1"]
    assert images.renamed_references(archive) == {"models/one:1": "docker.io/models/one:1"}
    with tarfile.open(archive) as tar:
        blobs = [member for member in tar if member.name.startswith("blobs/sha256/")]
        for member in blobs:
            content = tar.extractfile(member)
            assert content is not None
            assert hashlib.sha256(content.read()).hexdigest() == Path(member.name).name
    assert len(blobs) == 3


def test_names_of_a_docker_archive_are_found(tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    with tarfile.open(archive, "w") as tar:
        pause_image.add(tar, "manifest.json", json.dumps([{"RepoTags": ["localhost/one:1"]}, {"RepoTags": None}]).encode())
    assert images.archive_references(archive) == ["localhost/one:1"]


@pytest.mark.parametrize("content", [b"", b"no archive"])
def test_what_is_no_archive_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image.tar"
    path.write_bytes(content)
    with pytest.raises(ClusterError, match=str(path)):
        images.archive_references(path)


def test_archive_without_a_name_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    pause_image.write_archive(archive, "", {"one": b"program"}, ["/one"])
    with pytest.raises(ClusterError, match="names no image"):
        images.renamed_references(archive)
