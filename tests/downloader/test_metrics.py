"""The metrics file, read as Prometheus reads it."""

from __future__ import annotations

import re
import stat
import threading
from pathlib import Path

import pytest

from nlocalmodels_downloader.errors import ConfigError
from nlocalmodels_downloader.metrics import MetricsSink
from nlocalmodels_downloader.report import Board, Outcome

_SAMPLE = re.compile(r'^(nlocalmodels_download_\w+)(?:\{model="([^"]*)"\})? (\d+)$')


def read_samples(path: Path) -> dict[tuple[str, str | None], int]:
    """Parses the file, and insists on a type before each family's samples."""
    samples: dict[tuple[str, str | None], int] = {}
    typed: set[str] = set()
    for line in path.read_text().splitlines():
        if line.startswith("# TYPE "):
            typed.add(line.split()[2])
        elif not line.startswith("# HELP "):
            match = _SAMPLE.match(line)
            assert match, line
            assert match[1] in typed
            samples[match[1].removeprefix("nlocalmodels_download_"), match[2]] = int(match[3])
    return samples


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "downloads.prom"


def test_the_file_is_there_before_anything_happens(path: Path) -> None:
    MetricsSink(path)
    assert read_samples(path) == {("up_to_date", None): 0}
    assert [found.name for found in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("place", ["absent/m.prom", "folder"])
def test_a_file_that_cannot_be_written_is_a_wrong_command_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder" / "in-it").mkdir(parents=True)
    with pytest.raises(ConfigError, match="--metrics-file"):
        MetricsSink(tmp_path / place)


def test_it_says_how_far_each_model_is(path: Path) -> None:
    board = Board([MetricsSink(path)], 60.0)
    with board.running():
        progress = board.add("m", 100, 20)
        progress.received(30)
        progress.retrying("reset.", 0.1)
        board.report()
        assert read_samples(path) == {
            ("present_bytes", "m"): 50,
            ("size_bytes", "m"): 100,
            ("received_bytes_total", "m"): 30,
            ("retries_total", "m"): 1,
            ("up_to_date", None): 0,
        }
        progress.received(50)
        board.finish("m", Outcome.FETCHED)
    assert read_samples(path)["present_bytes", "m"] == 100
    assert read_samples(path)["up_to_date", None] == 1


def test_counters_grow_from_run_to_run_and_gauges_are_of_the_last(path: Path) -> None:
    sink = MetricsSink(path)
    for number in range(2):
        board = Board([sink], 60.0)
        with board.running():
            board.add("m", 100, 0).received(70)
            board.finish("m", Outcome.FETCHED)
            if number == 0:
                board.add("dropped", 10, 10)
                board.finish("dropped", Outcome.KEPT)
    samples = read_samples(path)
    assert samples["received_bytes_total", "m"] == 140
    assert samples["received_bytes_total", "dropped"] == 0
    assert samples["present_bytes", "m"] == 70
    assert ("present_bytes", "dropped") not in samples


def _run(sink: MetricsSink, outcome: Outcome | None, error: Exception | None = None) -> None:
    board = Board([sink], 60.0)
    with board.running():
        board.add("m", 10, 10)
        if outcome is not None:
            board.finish("m", outcome)
        if error is not None:
            raise error


def test_up_to_date_is_of_the_last_run(path: Path) -> None:
    sink = MetricsSink(path)
    _run(sink, Outcome.KEPT)
    assert read_samples(path)["up_to_date", None] == 1
    _run(sink, Outcome.FAILED)
    assert read_samples(path)["up_to_date", None] == 0
    _run(sink, Outcome.FETCHED)
    assert read_samples(path)["up_to_date", None] == 1
    with pytest.raises(KeyError):
        _run(sink, Outcome.KEPT, KeyError())
    assert read_samples(path)["up_to_date", None] == 0


def test_a_reader_never_sees_half_of_it(path: Path) -> None:
    board = Board([MetricsSink(path)], 0.0005)
    for number in range(50):
        board.add(f"m{number}", 100, 0)
    done = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not done.is_set():
            seen.append(read_samples(path).get(("up_to_date", None), -1))

    with board.running():
        board.report()
        reader = threading.Thread(target=read)
        reader.start()
        for _ in range(50):
            board.report()
        done.set()
        reader.join()
    assert set(seen) == {0}
    assert stat.S_IMODE(path.stat().st_mode) & 0o444


def test_label_values_are_escaped(path: Path) -> None:
    board = Board([MetricsSink(path)], 60.0)
    board.add('a"b\\c', 1, 0)
    board.report()
    assert 'size_bytes{model="a\\"b\\\\c"} 1' in path.read_text()
