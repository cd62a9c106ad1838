"""The commands beyond a plain sync: summary, JSON, metrics, prune's plan, wait, watch, verify."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from nlocalmodels_downloader.cli import main
from nlocalmodels_downloader.config import Model
from nlocalmodels_downloader.manifest import set_id
from support.downloads import Downloads, sha256, start_command, wait_for
from support.model_source import Behaviour

Run = Callable[..., int]


@contextmanager
def started(command: str, config: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A command in a process of its own, ended with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "nlocalmodels_downloader", command, "--config", str(config), *options],
        env={**os.environ, "POD_UID": "pod", "TERMINATION_MESSAGE_PATH": str(config.parent / "termination")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _json_lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def _outcomes(text: str) -> list[list[str]]:
    return [line.split()[:2] for line in text.splitlines()]


def test_sync_ends_with_a_table(run: Run, downloads: Downloads, capsys: pytest.CaptureFixture[str]) -> None:
    kept, fresh = downloads.serve("kept", 5000, 1), downloads.serve("fresh", 5000, 2)
    assert run("sync", downloads.model(kept, "kept")) == 0
    capsys.readouterr()
    models = [downloads.model(kept, "kept"), downloads.model(b"", "absent"), downloads.model(fresh, "fresh")]
    assert run("sync", *models) == 11
    assert sorted(_outcomes(capsys.readouterr().out)[1:-1]) == [["absent", "failed"], ["fresh", "fetched"], ["kept", "kept"]]


@pytest.mark.parametrize("before", [True, False])
def test_sync_says_all_in_json_wherever_the_option_stands(
    run: Run, downloads: Downloads, tmp_path: Path, capsys: pytest.CaptureFixture[str], before: bool
) -> None:
    data = downloads.serve(num_bytes=5000)
    config = downloads.write_config(tmp_path, [downloads.model(data), downloads.model(b"", "absent")])
    arguments = ["sync", "--config", str(config)]
    assert main(["--json", *arguments] if before else [*arguments, "--json"]) == 11
    *finished, summary = _json_lines(capsys.readouterr().out)
    outcomes = {line["model"]: line["outcome"] for line in finished if line["event"] == "finished"}
    assert outcomes == {"m": "fetched", "absent": "failed"}
    assert summary["event"] == "summary"
    assert "404" in str(summary["models"])


def test_sync_keeps_metrics(run: Run, downloads: Downloads, tmp_path: Path) -> None:
    path = tmp_path / "m.prom"
    data = downloads.serve(num_bytes=5000)
    assert run("sync", "--metrics-file", str(path), downloads.model(data)) == 0
    assert 'nlocalmodels_download_present_bytes{model="m"} 5000\n' in path.read_text()
    assert "nlocalmodels_download_up_to_date 1\n" in path.read_text()
    assert run("sync", "--metrics-file", str(path), downloads.model(data), downloads.model(b"", "absent")) == 11
    assert "nlocalmodels_download_up_to_date 0\n" in path.read_text()


def test_a_metrics_file_that_cannot_be_written_exits_with_2_before_a_request(
    run: Run, downloads: Downloads, tmp_path: Path, termination: Path
) -> None:
    assert run("sync", "--metrics-file", str(tmp_path / "absent" / "m.prom"), downloads.model(b"")) == 2
    assert "--metrics-file" in termination.read_text()
    assert downloads.source.requests == []


def test_plan_in_json(run: Run, downloads: Downloads, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", "--json", downloads.model(b"x", size_bytes=7)) == 0
    assert _json_lines(capsys.readouterr().out) == [
        {"event": "planned", "model": "m", "action": "fetch", "files": ["m.gguf"], "sizeBytes": 7},
        {"event": "plan", "fetchBytes": 7},
    ]


def _plan_prune(downloads: Downloads, folder: Path, models: Sequence[Model], *options: str) -> int:
    config = downloads.write_config(folder, models)
    config.write_text(config.read_text() + "prune: {keepSets: 1}\n")
    return main(["plan", "--config", str(config), *options])


def test_plan_says_what_would_be_pruned(downloads: Downloads, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, old, new = (downloads.serve(name, 5000, seed) for seed, name in enumerate(("kept", "old", "new")))
    models = {name: downloads.model(data, name) for name, data in (("kept", kept), ("old", old), ("new", new))}
    assert downloads.sync(models["kept"], models["old"]) == []
    [former] = [path.stem for path in (downloads.root / ".nlocalmodels" / "sets").iterdir()]
    expected = ["to prune: old.gguf (4.9 KiB)", f"to prune: sets {former}, 4.9 KiB in all"]
    # Before the new set is there, and after.
    for _ in range(2):
        assert _plan_prune(downloads, tmp_path, [models["kept"], models["new"]]) == 0
        assert capsys.readouterr().out.splitlines()[-2:] == expected
        assert downloads.published("old") == old
        assert downloads.sync(models["kept"], models["new"]) == []
    assert _plan_prune(downloads, tmp_path, [models["kept"], models["old"]], "--json") == 0
    prune = _json_lines(capsys.readouterr().out)[-1]
    assert prune["files"] == [{"file": "new.gguf", "sizeBytes": 5000}]
    assert prune["freedBytes"] == 5000


def test_plan_of_a_split_model_counts_the_files_that_are_missing(
    run: Run, downloads: Downloads, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = downloads.serve(num_bytes=5000)
    assert downloads.sync(downloads.model(data, size_bytes=5000)) == []
    path = downloads.write_config(tmp_path, [downloads.model(data, size_bytes=5000)])
    document = yaml.safe_load(path.read_text())
    document["models"][0]["shards"] = [{"file": "m-2.gguf", "source": "https://example.org/m-2.gguf", "sizeBytes": 2048}]
    path.write_text(yaml.safe_dump(document))
    assert main(["plan", "--config", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == ["m: to be fetched (m.gguf and 1 more, 6.9 KiB)", "to fetch: 2.0 KiB"]
    assert main(["verify", "--config", str(path)]) == 13
    assert "m: m-2.gguf: cannot be read" in capsys.readouterr().out


def test_verify_leaves_what_is_wrong_in_the_termination_message(
    run: Run, downloads: Downloads, termination: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = downloads.serve(num_bytes=5000)
    assert run("sync", downloads.model(data)) == 0
    assert run("verify", downloads.model(data)) == 0
    assert termination.read_text() == ""
    capsys.readouterr()
    wrong = replace(downloads.model(data), sha256="ab" * 32)
    assert run("verify", "--json", wrong, downloads.model(b"", "absent")) == 13
    first, second = _json_lines(capsys.readouterr().out)
    assert (first["sha256"], first["expectedSha256"], first["good"]) == (sha256(data), "ab" * 32, False)
    assert (second["model"], second["sha256"], second["good"]) == ("absent", None, False)
    [line] = termination.read_text().splitlines()
    assert sha256(data) in line
    assert "absent.gguf: cannot be read" in line


def test_verify_told_to_stop_exits_with_143(downloads: Downloads, tmp_path: Path, termination: Path) -> None:
    path = downloads.root / "m.gguf"
    downloads.root.mkdir()
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with started("verify", downloads.write_config(tmp_path, [downloads.model(b"x")])) as process:
        wait_for(lambda: _has_open(process, path), "a verify under way")
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 143, output
    assert "stopped while verifying" in termination.read_text()
    assert "Traceback" not in output


def _has_open(process: subprocess.Popen[str], path: Path) -> bool:
    folder = Path(f"/proc/{process.pid}/fd")
    try:
        return any(os.path.realpath(link) == str(path) for link in folder.iterdir())
    except OSError:
        return False


def test_wait_ends_when_a_sync_has_filled_the_volume(downloads: Downloads, tmp_path: Path) -> None:
    data = downloads.serve(num_bytes=5000)
    model = downloads.model(data, size_bytes=5000)
    with started("wait", downloads.write_config(tmp_path, [model]), "--timeout-seconds", "30") as process:
        assert process.stdout is not None
        assert "waiting for 1 of 1 models: m.gguf is not there" in process.stdout.readline()
        assert downloads.sync(model) == []
        output, _ = process.communicate(timeout=20)
    assert (process.returncode, output) == (0, "all 1 models are there\n")


def test_wait_in_vain_exits_with_14_and_names_what_is_missing(
    run: Run, downloads: Downloads, termination: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("wait", "--timeout-seconds", "0", "--json", downloads.model(b"x")) == 14
    assert "m.gguf is not there" in termination.read_text()
    assert not downloads.root.exists()


def test_wait_in_json(run: Run, downloads: Downloads, capsys: pytest.CaptureFixture[str]) -> None:
    data = downloads.serve(num_bytes=5000)
    assert downloads.sync(downloads.model(data)) == []
    assert run("wait", "--json", downloads.model(data)) == 0
    assert _json_lines(capsys.readouterr().out) == [{"event": "ready", "models": ["m"]}]


def test_nothing_declared_is_there_at_once_and_makes_a_set_of_nothing(
    run: Run, downloads: Downloads, termination: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("wait") == 0
    assert capsys.readouterr().out == "no models are declared, so none is waited for\n"
    downloads.root.mkdir()
    (downloads.root / "mine.gguf").write_bytes(b"GGUF")
    for _ in range(2):
        assert run("sync") == 0
        assert [path.stem for path in (downloads.root / ".nlocalmodels" / "sets").iterdir()] == [set_id([])]
    assert run("wait") == run("verify") == run("plan") == 0
    assert sorted(path.name for path in downloads.root.iterdir()) == [".nlocalmodels", "mine.gguf"]
    assert termination.read_text() == ""


def test_nothing_declared_keeps_an_old_set_and_then_prunes_it(downloads: Downloads, tmp_path: Path) -> None:
    data = downloads.serve(num_bytes=5000)
    assert downloads.sync(downloads.model(data)) == []
    (downloads.root / "mine.gguf").write_bytes(data)
    config = downloads.write_config(tmp_path, [])
    assert main(["sync", "--config", str(config)]) == 0
    assert downloads.published() == data
    config.write_text(config.read_text() + "prune: {keepSets: 1}\n")
    assert main(["sync", "--config", str(config)]) == 0
    assert (downloads.published(), downloads.published("mine")) == (None, data)


def test_wait_told_to_stop_exits_with_143(downloads: Downloads, tmp_path: Path) -> None:
    with started("wait", downloads.write_config(tmp_path, [downloads.model(b"x")])) as process:
        assert process.stdout is not None
        assert "waiting for" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 143


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "soon"])
def test_wait_refuses_a_timeout_that_is_none(run: Run, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("wait", f"--timeout-seconds={value}")
    assert caught.value.code == 2
    assert "--timeout-seconds" in capsys.readouterr().err


def _replace_config(downloads: Downloads, path: Path, models: Sequence[Model]) -> None:
    fresh = path.with_name("fresh")
    fresh.mkdir(exist_ok=True)
    os.replace(downloads.write_config(fresh, models), path)


def test_watch_keeps_the_volume_equal_to_the_list_and_ends_with_0(downloads: Downloads, tmp_path: Path) -> None:
    first, second = downloads.serve("first", 5000, 1), downloads.serve("second", 5000, 2)
    models = [downloads.model(first, "first"), downloads.model(second, "second")]
    config, metrics = downloads.write_config(tmp_path, models[:1]), tmp_path / "m.prom"
    with started("watch", config, "--metrics-file", str(metrics), "--json") as process:
        sets = downloads.root / ".nlocalmodels" / "sets"
        wait_for(lambda: sets.is_dir() and len(list(sets.glob("[!.]*.json"))) == 1, "the first set")
        _replace_config(downloads, config, models)
        wait_for(lambda: len(list(sets.glob("[!.]*.json"))) == 2, "the second set")
        wait_for(lambda: 'size_bytes{model="second"} 5000' in metrics.read_text(), "the second set's metrics")
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 0, output
    assert (downloads.published("first"), downloads.published("second")) == (first, second)
    assert "nlocalmodels_download_up_to_date 1\n" in metrics.read_text()
    assert set_id([]) not in {path.stem for path in sets.iterdir()}


def test_watch_told_to_stop_while_bytes_come_ends_with_0(downloads: Downloads, tmp_path: Path) -> None:
    model = downloads.model(downloads.serve())
    downloads.source.behave = lambda _: Behaviour(stall_after_bytes=1_000_000)
    with started("watch", downloads.write_config(tmp_path, [model])) as process:
        wait_for(lambda: downloads.source.sent_bytes > 500_000, "bytes")
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 0, output
    assert "Traceback" not in output


def test_watch_of_a_wrong_list_exits_with_2(tmp_path: Path, termination: Path) -> None:
    (tmp_path / "downloads.yaml").write_text("models: 3")
    with start_command(tmp_path / "downloads.yaml", command="watch") as process:
        process.communicate(timeout=20)
    assert process.returncode == 2
    assert "modelPath" in termination.read_text()


@pytest.mark.parametrize("command", ["sync", "plan", "wait", "verify"])
def test_a_reader_of_stdout_that_goes_away_changes_nothing(downloads: Downloads, tmp_path: Path, command: str) -> None:
    data = downloads.serve(num_bytes=5000)
    model = downloads.model(data)
    if command != "sync":
        assert downloads.sync(model) == []
    reading, writing = os.pipe()
    os.close(reading)
    models = [model] if command in ("sync", "wait") else [model, replace(model, id="n", file="n.gguf")]
    config = downloads.write_config(tmp_path, models)
    process = subprocess.run(
        [sys.executable, "-m", "nlocalmodels_downloader", command, "--config", str(config)],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=20,
        check=False,
    )
    os.close(writing)
    assert process.returncode == (13 if command == "verify" else 0), process.stderr
    assert "Traceback" not in process.stderr
    assert "BrokenPipeError" not in process.stderr
    assert downloads.published() == data
