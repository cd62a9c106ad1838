from __future__ import annotations

import os
from pathlib import Path

import pytest

from nlocalmodels_server.cpu import available_threads, cpu_quota


@pytest.mark.parametrize(("text", "expected"), [("max 100000", None), ("150000 100000", 1.5), ("50000 100000", 0.5)])
def test_cpu_quota_reads_version_2(tmp_path: Path, text: str, expected: float | None) -> None:
    (tmp_path / "cpu.max").write_text(text + "\n")
    assert cpu_quota(tmp_path) == expected


@pytest.mark.parametrize(("microseconds", "expected"), [(-1, None), (200000, 2.0)])
def test_cpu_quota_reads_version_1(tmp_path: Path, microseconds: int, expected: float | None) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{microseconds}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu_quota(tmp_path) == expected


def test_cpu_quota_is_none_without_cgroups(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None


def test_available_threads_rounds_down_but_not_to_zero(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert available_threads(tmp_path) == 1


def test_available_threads_is_bounded_by_the_cores(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("99900000 100000\n")
    assert available_threads(tmp_path) == len(os.sched_getaffinity(0))
