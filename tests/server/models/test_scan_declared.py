"""A scan that is told what belongs here: server.yaml's models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nlocalmodels_server.config import DeclaredModel
from nlocalmodels_server.models.scan import scan
from support.gguf_files import write_llama

DECLARED = DeclaredModel("chat", "m.Q4_0.gguf")


def write_set(folder: Path, name: str, models: Sequence[dict[str, Any]]) -> None:
    """Leaves a set manifest as the downloader does."""
    path = folder / ".nlocalmodels" / "sets" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"version": 1, "set": name, "models": models}))


def ids(folder: Path, declared: Sequence[DeclaredModel] | None, serve_undeclared: bool = True) -> dict[str, str]:
    return {model.file: model.id for model in scan(folder, declared, serve_undeclared).models}


def test_a_declared_id_is_stronger_than_a_manifests(tmp_path: Path) -> None:
    write_llama(tmp_path / DECLARED.file)
    write_set(tmp_path, "now", [{"id": "other", "file": DECLARED.file}])
    assert ids(tmp_path, [DECLARED]) == {DECLARED.file: "chat"}
    assert ids(tmp_path, None) == {DECLARED.file: "other"}


def test_a_declared_file_may_lie_in_a_subfolder(tmp_path: Path) -> None:
    (tmp_path / "team" / "x").mkdir(parents=True)
    write_llama(tmp_path / "team" / "x" / "a.gguf")
    assert ids(tmp_path, [DeclaredModel("chat", "team/x/a.gguf")]) == {"team/x/a.gguf": "chat"}


def test_a_declared_file_that_is_missing_is_a_problem_and_the_others_serve(tmp_path: Path) -> None:
    write_llama(tmp_path / DECLARED.file)
    result = scan(tmp_path, [DECLARED, DeclaredModel("x", "gone.gguf")])
    assert [model.id for model in result.models] == ["chat"]
    assert result.problems == {"gone.gguf": "declared as 'x', but it is not in MODEL_PATH"}


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_all_declared_files_are_problems_when_there_is_nothing(tmp_path: Path, folder: str) -> None:
    assert list(scan(tmp_path / folder, [DECLARED]).problems) == [DECLARED.file]


def test_a_declared_file_that_is_no_model_is_a_problem(tmp_path: Path) -> None:
    write_llama(tmp_path / "mmproj-m.gguf")
    (tmp_path / "page.gguf").write_bytes(b"<html>")
    result = scan(tmp_path, [DeclaredModel("eyes", "mmproj-m.gguf"), DeclaredModel("page", "page.gguf")])
    assert (result.models, result.ignored) == ([], {})
    assert result.problems["mmproj-m.gguf"] == "declared as 'eyes', but a projector for images, no model of its own"
    assert "not a GGUF file" in result.problems["page.gguf"]


def test_a_file_of_another_set_is_ignored_and_a_persons_is_served(tmp_path: Path) -> None:
    for file in (DECLARED.file, "old.gguf", "mine.Q8_0.gguf"):
        write_llama(tmp_path / file)
    # Not even looked into.
    (tmp_path / "broken.gguf").write_bytes(b"<html>")
    write_set(tmp_path, "old", [{"id": "old", "file": "old.gguf"}, {"id": "broken", "file": "broken.gguf"}])
    write_set(tmp_path, "now", [{"id": "chat", "file": DECLARED.file}])
    result = scan(tmp_path, [DECLARED])
    assert {model.file: model.id for model in result.models} == {DECLARED.file: "chat", "mine.Q8_0.gguf": "mine"}
    assert result.ignored == dict.fromkeys(("old.gguf", "broken.gguf"), "belongs to another set")
    assert result.problems == {}


def test_the_shards_of_another_set_are_ignored_even_if_some_are_gone(tmp_path: Path) -> None:
    files = [f"big-Q8_0-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for file in files[1:]:
        write_llama(tmp_path / file)
    write_set(tmp_path, "old", [{"id": "big", "file": files[0], "shards": [{"file": file} for file in files[1:]]}])
    result = scan(tmp_path, [])
    assert (result.models, result.problems) == ([], {})
    assert result.ignored == dict.fromkeys(files[1:], "belongs to another set")


def test_the_shards_of_a_declared_model_belong_to_it(tmp_path: Path) -> None:
    files = [f"big-Q8_0-0000{number}-of-00002.gguf" for number in (1, 2)]
    for file in files:
        write_llama(tmp_path / file)
    write_set(tmp_path, "now", [{"id": "big", "file": files[0], "shards": [{"file": files[1]}]}])
    result = scan(tmp_path, [DeclaredModel("large", files[0])], serve_undeclared=False)
    assert [(model.id, model.file) for model in result.models] == [("large", files[0])]
    assert result.ignored == {files[1]: f"shard 2 of {files[0]}"}


def test_a_declared_model_without_one_of_its_shards_is_a_problem(tmp_path: Path) -> None:
    first, second = (f"big-Q8_0-0000{number}-of-00002.gguf" for number in (1, 2))
    write_llama(tmp_path / first)
    result = scan(tmp_path, [DeclaredModel("large", first)])
    assert result.models == []
    assert second in result.problems[first]


def test_undeclared_files_are_ignored_when_they_are_not_to_be_served(tmp_path: Path) -> None:
    for file in (DECLARED.file, "mine.gguf"):
        write_llama(tmp_path / file)
    (tmp_path / "page.gguf").write_bytes(b"<html>")
    result = scan(tmp_path, [DECLARED], serve_undeclared=False)
    assert [model.id for model in result.models] == ["chat"]
    assert result.ignored == dict.fromkeys(("mine.gguf", "page.gguf"), "not declared, and serveUndeclared is false")
    assert result.problems == {}


def test_nothing_declared_leaves_old_sets_alone_and_serves_what_a_person_put_there(tmp_path: Path) -> None:
    for file in ("old.gguf", "mine.gguf"):
        write_llama(tmp_path / file)
    write_set(tmp_path, "old", [{"id": "old", "file": "old.gguf"}])
    write_set(tmp_path, "none", [])
    assert ids(tmp_path, []) == {"mine.gguf": "mine"}
    assert ids(tmp_path, None) == {"mine.gguf": "mine", "old.gguf": "old"}


def test_a_set_that_cannot_be_read_does_not_stop_the_scan(tmp_path: Path) -> None:
    write_llama(tmp_path / "m.gguf")
    write_set(tmp_path, "old", [{"id": "m", "file": "m.gguf", "shards": None}])
    assert ids(tmp_path, []) == {"m.gguf": "m"}


def test_another_file_never_gets_the_id_of_a_declared_one_even_if_that_is_missing(tmp_path: Path) -> None:
    write_llama(tmp_path / "chat.Q8_0.gguf")
    result = scan(tmp_path, [DECLARED])
    assert [(model.id, model.aliases) for model in result.models] == [("chat.Q8_0", ())]
    assert "'chat' is the id of another file" in result.warnings[0]
