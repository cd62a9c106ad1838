"""The set manifest: the downloader writes it, the server reads it."""

from __future__ import annotations

from pathlib import Path

from nlocalmodels_downloader.manifest import ManifestEntry, Shard, write_manifest
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


def test_every_file_that_the_downloader_names_is_known_as_a_sets(tmp_path: Path) -> None:
    names = [f"big-0000{number}-of-00002.gguf" for number in (1, 2)]
    for name in (*names, "m.gguf", "uploaded.gguf"):
        write_llama(tmp_path / name)
    entries = [
        ManifestEntry("big", names[0], "0" * 64, 1, (Shard(names[1], "1" * 64, 1),)),
        ManifestEntry("m", "m.gguf", "2" * 64, 1),
    ]
    write_manifest(Volume(tmp_path, "test").state / "sets", entries)
    result = scan(tmp_path, declared=[])
    assert [model.id for model in result.models] == ["uploaded"]
    assert result.ignored == dict.fromkeys((*names, "m.gguf"), "belongs to another set")


def test_an_empty_set_says_nothing_of_any_file(tmp_path: Path) -> None:
    write_llama(tmp_path / "uploaded.gguf")
    write_manifest(Volume(tmp_path, "test").state / "sets", [])
    assert [model.id for model in scan(tmp_path).models] == ["uploaded"]
    assert [model.id for model in scan(tmp_path, declared=[]).models] == ["uploaded"]
