"""A few of the schedules of `make soak-download`: transfers that are killed at random, and what that costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def test_kills_at_random_cost_no_more_than_the_budget_and_leave_nothing_behind(memory_folder: Path) -> None:
    command = [sys.executable, "-m", "support.kill_schedules", "--schedules", "5", "--size-mib", "64", "--seed", "7"]
    ended = subprocess.run(
        [*command, "--folder", str(memory_folder)], cwd=TESTS, capture_output=True, text=True, check=False, timeout=150
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "| schedules | 5 |" in ended.stdout
