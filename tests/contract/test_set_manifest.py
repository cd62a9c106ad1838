"""The set manifest: the downloader writes it, the server reads it."""

from __future__ import annotations

from pathlib import Path

from nlocalmodels_downloader.manifest import ManifestEntry, Shard, set_id, write_manifest
from nlocalmodels_downloader.volume import FOUND_ON_VOLUME, STATE_FOLDER, Verified, Volume
from nlocalmodels_server.config import Config, parse_config
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


def test_the_server_reads_the_sizes_of_a_complete_set(tmp_path: Path) -> None:
    entry = ManifestEntry("big", "big-00001-of-00002.gguf", "0" * 64, 7, (Shard("big-00002-of-00002.gguf", "1" * 64, 5),))
    identity = set_id([entry])
    assert manifest.read_set_sizes(tmp_path, identity) is None
    assert write_manifest(tmp_path / manifest.SETS_FOLDER, [entry]) == identity
    assert manifest.read_set_sizes(tmp_path, identity) == {"big-00001-of-00002.gguf": 7, "big-00002-of-00002.gguf": 5}
    assert parse_config({"set": identity}) == (Config(set_id=identity), [])


def test_the_server_tells_what_was_fetched_from_what_a_person_put_there(tmp_path: Path) -> None:
    volume = Volume(tmp_path, "test")
    for name, source in (("fetched", "https://models.example"), ("mine", FOUND_ON_VOLUME)):
        write_llama(tmp_path / f"{name}.gguf")
        volume.record_verified(f"{name}.gguf", Verified("1" * 64, source))
    write_llama(tmp_path / "copied.gguf")
    result = scan(tmp_path, declared=[])
    assert [model.id for model in result.models] == ["copied", "mine"]
    assert result.ignored == {"fetched.gguf": "was fetched for a set that is not complete"}


def test_the_server_knows_a_file_that_was_fetched_in_place_of_a_sets(tmp_path: Path) -> None:
    volume = Volume(tmp_path, "test")
    write_llama(tmp_path / "m.gguf")
    identity = write_manifest(volume.state / "sets", [ManifestEntry("m", "m.gguf", "1" * 64, 1)])
    for digest, is_foreign in (("1", False), ("2", True)):
        volume.record_verified("m.gguf", Verified(digest * 64, "https://models.example"))
        assert manifest.was_fetched_for_another(tmp_path, identity, "m.gguf") is is_foreign
    assert not manifest.was_fetched_for_another(tmp_path, identity, "mine.gguf")
