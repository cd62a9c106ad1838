from __future__ import annotations

import json
from pathlib import Path

from nlocalmodels_downloader.manifest import ManifestEntry, set_id, write_manifest

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
