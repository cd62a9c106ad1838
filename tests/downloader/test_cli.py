"""The command line as a container calls it: exit codes, output and the termination message."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nlocalmodels_downloader.cli import main
from nlocalmodels_downloader.errors import (
    ConfigError,
    CorruptError,
    DeniedError,
    DownloaderError,
    ExhaustedError,
    GoneError,
    RefusedError,
    SpaceError,
    StoppedError,
)
from support.downloads import MIB, Downloads, sha256, start_command
from support.model_source import Behaviour

Run = Callable[..., int]


def test_help_lists_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    errors: list[type[DownloaderError]] = [
        ConfigError, DeniedError, GoneError, SpaceError, CorruptError, ExhaustedError, RefusedError, StoppedError,
    ]  # fmt: skip
    for error in errors:
        assert f"\n  {error.exit_code:<5}" in text
    for command in ("sync", "plan", "watch", "wait", "verify", "receive"):
        assert f"\n    {command} " in text


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["sync"],
        ["watch-tv", "--config", "x"],
        ["sync", "--config", "x", "--fast"],
        ["sync", "--model-path", "x"],
        ["receive"],
        ["receive", "--config", "x"],
        ["receive", "--model-path", "x", "--timeout-seconds", "-1"],
    ],
)
def test_a_wrong_command_line_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


@pytest.mark.parametrize("command", ["sync", "plan", "watch", "wait", "verify"])
def test_a_missing_config_exits_with_2_and_leaves_the_reason(
    command: str, termination: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--config", str(tmp_path / "absent.yaml")]) == 2
    assert "absent.yaml" in termination.read_text()
    assert "absent.yaml" in capsys.readouterr().err


def test_a_wrong_setting_exits_with_2(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DOWNLOAD_CONNECTIONS", "lots")
    assert run("plan") == 2
    assert "DOWNLOAD_CONNECTIONS" in capsys.readouterr().err


def test_sync_exits_with_0_and_leaves_no_message(run: Run, downloads: Downloads, termination: Path) -> None:
    data = downloads.serve()
    assert run("sync", downloads.model(data)) == 0
    assert downloads.published() == data
    assert termination.read_text() == ""


@pytest.mark.parametrize(
    ("behaviour", "exit_code"),
    [
        (Behaviour(status=401), 10),
        (Behaviour(status=403), 10),
        (Behaviour(status=404), 11),
        (Behaviour(body=b"<html>"), 13),
        (Behaviour(status=503, headers={"Retry-After": "0"}), 14),
        (Behaviour(headers={"Content-Encoding": "br"}), 15),
        (Behaviour(status=302, headers={"Location": "http://169.254.169.254/"}), 15),
    ],
)
def test_sync_exits_with_the_code_of_the_failure_and_leaves_one_line(
    run: Run, downloads: Downloads, termination: Path, behaviour: Behaviour, exit_code: int
) -> None:
    data = downloads.serve()
    downloads.source.behave = lambda _: behaviour
    assert run("sync", downloads.model(data)) == exit_code
    [line] = termination.read_text().splitlines()
    assert line.startswith("m: ")


def test_sync_names_every_failure_and_exits_with_the_first_code(run: Run, downloads: Downloads, termination: Path) -> None:
    good = downloads.serve("good")
    downloads.source.behave = lambda r: Behaviour(status=401) if r.path == "/denied.gguf" else Behaviour()
    models = [downloads.model(b"", "gone"), downloads.model(good, "good"), downloads.model(b"", "denied")]
    assert run("sync", *models) == 11
    assert "gone: " in termination.read_text()
    assert "denied: " in termination.read_text()
    assert downloads.published("good") == good


def test_sync_names_both_digests_when_they_differ(run: Run, downloads: Downloads, termination: Path) -> None:
    data = downloads.serve()
    assert run("sync", replace(downloads.model(data), sha256="ab" * 32)) == 13
    assert sha256(data) in termination.read_text()
    assert "ab" * 32 in termination.read_text()


@pytest.mark.parametrize("path", ["", "absent/log", "folder"])
def test_a_termination_message_that_cannot_be_left_changes_nothing(
    run: Run, downloads: Downloads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERMINATION_MESSAGE_PATH", path)
    assert run("sync", downloads.model(b"", "gone")) == 11
    assert not (tmp_path / "absent").exists()


def test_plan_says_what_sync_would_do_without_a_request(
    run: Run, downloads: Downloads, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, unrecorded, absent = (downloads.serve(name, seed=seed) for seed, name in enumerate(("kept", "found", "absent")))
    assert run("sync", downloads.model(kept, "kept")) == 0
    (downloads.root / "found.gguf").write_bytes(unrecorded)
    downloads.source.requests.clear()
    capsys.readouterr()
    models = [
        downloads.model(kept, "kept"),
        downloads.model(unrecorded, "found"),
        downloads.model(absent, "absent", size_bytes=len(absent)),
    ]
    assert run("plan", *models) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" (")[0] for line in lines] == [
        "kept: present and verified",
        "found: present, to be verified",
        "absent: to be fetched",
        "to fetch: 3.0 MiB",
    ]
    assert downloads.source.requests == []


def test_plan_creates_nothing(run: Run, downloads: Downloads) -> None:
    assert run("plan", downloads.model(b"x")) == 0
    assert not downloads.root.exists()


def test_verify_computes_every_digest_anew(run: Run, downloads: Downloads, capsys: pytest.CaptureFixture[str]) -> None:
    data = downloads.serve()
    model = downloads.model(data)
    assert run("sync", model) == 0
    assert run("verify", model) == 0
    path = downloads.root / "m.gguf"
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(MIB)
        file.write(b"rot")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    capsys.readouterr()
    assert run("verify", model) == 13
    text = capsys.readouterr().out
    assert sha256(path.read_bytes()) in text
    assert sha256(data) in text


def test_verify_names_a_file_that_is_not_there(run: Run, downloads: Downloads, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", downloads.model(b"x")) == 13
    assert "m.gguf: cannot be read (No such file or directory)" in capsys.readouterr().out


def test_the_command_writes_the_log_to_stderr_with_a_time_and_no_traceback(downloads: Downloads, tmp_path: Path) -> None:
    config = downloads.write_config(tmp_path, [downloads.model(b"", "gone")])
    with start_command(config) as process:
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 11
    assert "Z ERROR gone: " in output
    assert "Traceback" not in output


def test_the_command_says_so_when_a_file_may_not_grow(downloads: Downloads, tmp_path: Path) -> None:
    data = downloads.serve()
    config = downloads.write_config(tmp_path, [downloads.model(data)])
    with start_command(config, max_file_bytes=2 * MIB) as process:
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 12, output
    assert "does not take files this large" in output
    assert "Traceback" not in output


def test_the_command_shows_no_token(downloads: Downloads, tmp_path: Path) -> None:
    downloads.source.behave = lambda _: Behaviour(status=401, headers={"WWW-Authenticate": "Bearer"})
    config = downloads.write_config(tmp_path, [downloads.model(b"")])
    environ = {"HF_TOKEN": "hf_SECRET", "HF_ENDPOINT": downloads.source.url}
    with start_command(config, environ) as process:
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 10
    assert downloads.source.requests[0].headers["authorization"] == "Bearer hf_SECRET"
    assert "SECRET" not in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_the_command_still_imports_is_not_lost(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "requests.py").write_text("print('importing', flush=True)\nimport time\ntime.sleep(60)\n")
    with subprocess.Popen(
        [sys.executable, "-m", "nlocalmodels_downloader", "--help"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(number)
        assert process.wait(20) == 143
