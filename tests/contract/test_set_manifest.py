"""The set manifest: the downloader writes it, the server reads it."""

from __future__ import annotations

from pathlib import Path

from nlocalmodels_downloader.manifest import ManifestEntry, write_manifest
from nlocalmodels_downloader.volume import STATE_FOLDER, Volume
from nlocalmodels_server.models import manifest
from nlocalmodels_server.models.scan import scan
from support.gguf_files import write_llama


def test_state_folder_is_the_same_for_both() -> None:
    assert manifest.STATE_FOLDER == STATE_FOLDER


def test_ids_that_the_downloader_writes_are_those_that_the_server_serves(tmp_path: Path) -> None:
    write_llama(tmp_path / "mistral-7b-instruct-v0.2.Q4_K_M.gguf")
    write_llama(tmp_path / "uploaded.Q8_0.gguf")
    entry = ManifestEntry("mistral-7b-instruct", "mistral-7b-instruct-v0.2.Q4_K_M.gguf", "0" * 64, 1)
    write_manifest(Volume(tmp_path, "test").state / "sets", [entry])
    assert [model.id for model in scan(tmp_path).models] == ["mistral-7b-instruct", "uploaded"]


def test_newer_manifest_wins(tmp_path: Path) -> None:
    write_llama(tmp_path / "m.gguf")
    folder = Volume(tmp_path, "test").state / "sets"
    for number, model_id in enumerate(("before", "after")):
        write_manifest(folder, [ManifestEntry(model_id, "m.gguf", str(number) * 64, 1)])
    assert [model.id for model in scan(tmp_path).models] == ["after"]
