from __future__ import annotations

import json
import os
from pathlib import Path

from nlocalmodels_server.models.scan import scan
from support.gguf_files import write_llama


def test_scan_tells_models_from_everything_else(tmp_path: Path) -> None:
    write_llama(tmp_path / "good.Q4_K_M.gguf")
    write_llama(tmp_path / "lora.gguf", general_type="adapter")
    write_llama(tmp_path / "mmproj-good.gguf")
    (tmp_path / "old.bin").write_bytes(b"x")
    (tmp_path / "half.gguf.part").write_bytes(b"x")
    (tmp_path / "page.gguf").write_bytes(b"<html>")
    (tmp_path / ".hidden.gguf").write_bytes(b"x")
    result = scan(tmp_path)
    assert [model.id for model in result.models] == ["good"]
    assert set(result.problems) == {"page.gguf"}
    assert set(result.ignored) == {"lora.gguf", "mmproj-good.gguf", "old.bin", "half.gguf.part"}


def test_scan_serves_a_split_model_under_its_first_shard(tmp_path: Path) -> None:
    for number in (1, 2):
        write_llama(tmp_path / f"big-Q8_0-0000{number}-of-00002.gguf")
    result = scan(tmp_path)
    assert [(model.id, model.file) for model in result.models] == [("big", "big-Q8_0-00001-of-00002.gguf")]
    assert set(result.ignored) == {"big-Q8_0-00002-of-00002.gguf"}


def test_scan_names_missing_shards(tmp_path: Path) -> None:
    write_llama(tmp_path / "big-Q8_0-00001-of-00003.gguf")
    result = scan(tmp_path)
    assert result.models == []
    (problem,) = result.problems.values()
    assert "big-Q8_0-00002-of-00003.gguf, big-Q8_0-00003-of-00003.gguf" in problem


def test_scan_looks_into_subfolders_but_not_into_the_downloaders(tmp_path: Path) -> None:
    for folder in ("team", ".nlocalmodels/partials", "lost+found"):
        (tmp_path / folder).mkdir(parents=True)
    write_llama(tmp_path / "team" / "a.gguf")
    write_llama(tmp_path / ".nlocalmodels" / "partials" / "b.gguf")
    assert [model.file for model in scan(tmp_path).models] == ["team/a.gguf"]


def test_scan_takes_ids_from_the_set_manifest(tmp_path: Path) -> None:
    write_llama(tmp_path / "some-file.Q4_0.gguf")
    sets = tmp_path / ".nlocalmodels" / "sets"
    sets.mkdir(parents=True)
    entry = {"id": "chat", "file": "some-file.Q4_0.gguf", "sha256": "0" * 64, "sizeBytes": 1}
    (sets / "abc.json").write_text(json.dumps({"version": 1, "set": "abc", "models": [entry]}))
    assert [model.id for model in scan(tmp_path).models] == ["chat"]


def test_scan_goes_on_when_a_manifest_is_damaged(tmp_path: Path) -> None:
    write_llama(tmp_path / "m.Q4_0.gguf")
    sets = tmp_path / ".nlocalmodels" / "sets"
    sets.mkdir(parents=True)
    (sets / "abc.json").write_text("{")
    assert [model.id for model in scan(tmp_path).models] == ["m"]


def test_scan_finds_nothing_when_the_folder_is_missing(tmp_path: Path) -> None:
    assert scan(tmp_path / "nowhere").models == []


def test_scan_does_not_open_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    assert scan(tmp_path).problems == {"pipe.gguf": "no regular file"}


def test_scan_reports_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.gguf")).write_bytes(b"GGUF")
    result = scan(tmp_path)
    assert result.models == []
    assert list(result.problems) == ["\\udcff.gguf"]


def test_scan_goes_on_when_a_manifest_is_gone(tmp_path: Path) -> None:
    sets = tmp_path / ".nlocalmodels" / "sets"
    sets.mkdir(parents=True)
    (sets / "abc.json").symlink_to("nowhere")
    write_llama(tmp_path / "m.gguf")
    assert [model.id for model in scan(tmp_path).models] == ["m"]


def test_scan_gives_an_id_to_the_file_of_the_newest_set(tmp_path: Path) -> None:
    sets = tmp_path / ".nlocalmodels" / "sets"
    sets.mkdir(parents=True)
    for time, file in ((2, "a.Q8_0.gguf"), (1, "b.Q4_0.gguf")):
        write_llama(tmp_path / file)
        manifest = sets / f"{file}.json"
        manifest.write_text(json.dumps({"version": 1, "models": [{"id": "chat", "file": file}]}))
        os.utime(manifest, (3 - time, 3 - time))
    assert {model.file: model.id for model in scan(tmp_path).models} == {"a.Q8_0.gguf": "a", "b.Q4_0.gguf": "chat"}
