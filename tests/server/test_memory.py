from __future__ import annotations

from pathlib import Path

import pytest

from nlocalmodels_server.memory import Memory, read_memory


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.mark.parametrize("version", [1, 2])
def test_page_cache_is_free_but_for_what_is_mapped(tmp_path: Path, version: int) -> None:
    if version == 2:
        stat = "anon 5\nactive_file 30\ninactive_file 20\nfile_mapped 35\n"
        write(tmp_path, memory__max="1000\n", memory__current="100\n", memory__stat=stat)
    else:
        stat = "active_file 1\ntotal_active_file 30\ntotal_inactive_file 20\ntotal_mapped_file 35\n"
        write(tmp_path / "memory", memory__limit_in_bytes="1000\n", memory__usage_in_bytes="100\n", memory__stat=stat)
    memory = read_memory(tmp_path)
    assert memory == Memory(1000, 85)
    assert memory.free_bytes == 915


def test_no_limit_and_no_cgroup_are_none(tmp_path: Path) -> None:
    assert read_memory(tmp_path) is None
    write(tmp_path / "memory", memory__limit_in_bytes="9223372036854771712\n")
    assert read_memory(tmp_path) is None
    write(tmp_path, memory__max="max\n")
    assert read_memory(tmp_path) is None


def test_nothing_is_free_beyond_the_limit() -> None:
    assert Memory(10, 20).free_bytes == 0
