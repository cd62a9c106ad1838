"""The images of the downloader before a real object store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import images
from support.gguf_files import bulk_gguf
from support.image_runs import Run, run_to_end
from support.s3_store import ACCESS_KEY, SECRET_KEY, S3Store, running_store

# The first use on a machine makes the base, the images and the store.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

DATA = bulk_gguf(3 * 1024 * 1024, seed=5)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Store]:
    with running_store(tmp_path_factory.mktemp("s3")) as running:
        running.put("models", "folder/m.gguf", DATA)
        yield running


def _run(archives: dict[str, Path], name: str, store: S3Store, folder: Path) -> Run:
    volume, config = folder / "volume", folder / "config"
    for path in (volume, config):
        path.mkdir()
    # As a volume of a pod: writable for its user, whoever that is.
    volume.chmod(0o777)
    digest = hashlib.sha256(DATA).hexdigest()
    model = {"id": "m", "file": "m.gguf", "source": "s3://models/folder/m.gguf", "sha256": digest, "sizeBytes": len(DATA)}
    (config / "downloads.yaml").write_text(yaml.safe_dump({"modelPath": "/app/models", "models": [model]}))
    credentials = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    return Run(
        images.IMAGES[name].name,
        archives[name],
        arguments=["sync", "--config", "/config/downloads.yaml"],
        environ={"NO_PROXY": "*", "POD_UID": "pod", "AWS_ENDPOINT_URL_S3": store.url, **credentials},
        mounts={"/app/models": volume, "/config:ro": config},
        user=(1_000_690_000, 0),
    )


def test_image_for_object_stores_fetches_from_one(archives: dict[str, Path], store: S3Store, tmp_path: Path) -> None:
    code, said = run_to_end(_run(archives, "downloader-s3", store, tmp_path), tmp_path / "log")
    assert code == 0, said
    assert (tmp_path / "volume" / "m.gguf").read_bytes() == DATA
    assert SECRET_KEY not in said
    assert "X-Amz" not in said


def test_default_image_says_which_one_to_take(archives: dict[str, Path], store: S3Store, tmp_path: Path) -> None:
    code, said = run_to_end(_run(archives, "downloader", store, tmp_path), tmp_path / "log")
    assert code == 15
    assert "take the image downloader-s3" in said
