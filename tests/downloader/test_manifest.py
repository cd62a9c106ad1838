from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nlocalmodels_downloader.manifest import (
    ManifestEntry,
    ManifestError,
    Shard,
    manifest_paths,
    read_manifest,
    set_id,
    write_manifest,
)
from support.downloads import sha256

FIRST = ManifestEntry("a", "a.gguf", "aa" * 32, 5)
SECOND = ManifestEntry("b", "b.gguf", "bb" * 32, 6)


def test_set_id_is_of_files_digests_and_order() -> None:
    same = set_id([FIRST, SECOND])
    assert same == set_id([FIRST, SECOND])
    assert len(same) == 12
    others = [[SECOND, FIRST], [FIRST], [], [FIRST, ManifestEntry("b", "b.gguf", "bc" * 32, 6)]]
    assert same not in [set_id(entries) for entries in others]


def test_write_manifest_says_what_is_there(tmp_path: Path) -> None:
    identity = write_manifest(tmp_path / "sets", [FIRST, SECOND])
    assert json.loads((tmp_path / "sets" / f"{identity}.json").read_bytes()) == {
        "version": 1,
        "set": identity,
        "models": [
            {"id": "a", "file": "a.gguf", "sha256": "aa" * 32, "sizeBytes": 5},
            {"id": "b", "file": "b.gguf", "sha256": "bb" * 32, "sizeBytes": 6},
        ],
    }


def test_write_manifest_leaves_an_unchanged_one_alone_and_mends_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / f"{write_manifest(tmp_path, [FIRST])}.json"
    before = path.stat()
    write_manifest(tmp_path, [FIRST])
    assert path.stat().st_ino == before.st_ino
    whole = path.read_bytes()
    path.write_bytes(whole[:10])
    write_manifest(tmp_path, [FIRST])
    assert path.read_bytes() == whole


def test_write_manifest_keeps_those_of_other_sets(tmp_path: Path) -> None:
    first, second = write_manifest(tmp_path, [FIRST]), write_manifest(tmp_path, [SECOND])
    assert {path.name for path in tmp_path.iterdir()} == {f"{first}.json", f"{second}.json"}


def test_write_manifest_makes_an_unchanged_one_the_newest(tmp_path: Path) -> None:
    first, second = write_manifest(tmp_path, [FIRST]), write_manifest(tmp_path, [SECOND])
    os.utime(tmp_path / f"{first}.json", (1, 1))
    os.utime(tmp_path / f"{second}.json", (2, 2))
    assert [path.stem for path in manifest_paths(tmp_path)] == [second, first]
    write_manifest(tmp_path, [FIRST])
    assert [path.stem for path in manifest_paths(tmp_path)] == [first, second]


def test_shards_are_written_only_where_there_are_some_and_decide_the_set_id(tmp_path: Path) -> None:
    shards = (Shard("a-2.gguf", "ab" * 32, 7), Shard("a-3.gguf", "ac" * 32, 8))
    sharded = replace(FIRST, shards=shards)
    identity = write_manifest(tmp_path, [sharded, SECOND])
    document = json.loads((tmp_path / f"{identity}.json").read_bytes())
    assert document["models"][0]["shards"] == [
        {"file": "a-2.gguf", "sha256": "ab" * 32, "sizeBytes": 7},
        {"file": "a-3.gguf", "sha256": "ac" * 32, "sizeBytes": 8},
    ]
    assert "shards" not in document["models"][1]
    assert [file.file for file in sharded.files] == ["a.gguf", "a-2.gguf", "a-3.gguf"]
    others = [set_id(entries) for entries in ([FIRST, SECOND], [replace(FIRST, shards=shards[::-1]), SECOND])]
    assert identity not in others
    lines = [f"a.gguf {'aa' * 32}", f"a-2.gguf {'ab' * 32}", f"a-3.gguf {'ac' * 32}", f"b.gguf {'bb' * 32}"]
    assert identity == sha256("".join(f"{line}\n" for line in lines).encode())[:12]


def test_read_manifest_returns_what_was_written(tmp_path: Path) -> None:
    entries = (replace(FIRST, shards=(Shard("a-2.gguf", "ab" * 32, 7),)), SECOND)
    assert read_manifest(tmp_path / f"{write_manifest(tmp_path, entries)}.json") == entries
    assert read_manifest(tmp_path / f"{write_manifest(tmp_path, [])}.json") == ()


def _changed(path: Path, **changes: object) -> bytes:
    document = json.loads(path.read_bytes())
    document["models"][0] |= changes
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda path: path.read_bytes()[:-5],
        lambda _: b"\xff",
        lambda _: b"[]",
        lambda _: b"null",
        lambda _: b'{"version": 1, "models": [[]]}',
        lambda path: path.read_bytes().replace(b'"version": 1', b'"version": 2'),
        lambda path: _changed(path, file="../a.gguf"),
        lambda path: _changed(path, file=".nlocalmodels"),
        lambda path: _changed(path, file="sub/a.gguf"),
        lambda path: _changed(path, file=""),
        lambda path: _changed(path, file=None),
        lambda path: _changed(path, sha256="aa"),
        lambda path: _changed(path, sha256="bb" * 32),
        lambda path: _changed(path, sizeBytes="5"),
        lambda path: _changed(path, shards=[{"file": "x.gguf", "sha256": "bb" * 32, "sizeBytes": 1}]),
        lambda path: _changed(path, shards=3),
    ],
)
def test_read_manifest_refuses_a_damaged_one(tmp_path: Path, damage: Callable[[Path], bytes]) -> None:
    path = tmp_path / f"{write_manifest(tmp_path, [FIRST])}.json"
    path.write_bytes(damage(path))
    with pytest.raises(ManifestError, match=path.name):
        read_manifest(path)


def test_manifest_paths_of_no_folder_is_empty_and_ignores_unfinished_ones(tmp_path: Path) -> None:
    assert manifest_paths(tmp_path / "absent") == []
    (tmp_path / ".abc.json.12.new").touch()
    (tmp_path / ".abc.json").touch()
    assert manifest_paths(tmp_path) == []
