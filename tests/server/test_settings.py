from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nlocalmodels_server.config import DeclaredModel
from nlocalmodels_server.settings import DEFAULT_CONFIG_PATH, Settings, SettingsError, SettingsSource, read_settings


@pytest.fixture
def config_path(tmp_path: Path) -> Path:
    """A server.yaml that says something of everything."""
    models: list[dict[str, Any]] = [
        {"id": "a", "file": "a.gguf", "contextTokens": 128, "numSlots": 2, "numThreads": 1},
        {"id": "b", "file": "b.gguf"},
    ]
    document = {"readyWhen": "all", "contextTokens": 256, "numSlots": 4, "numThreads": 3, "graceSeconds": 7, "models": models}
    path = tmp_path / "server.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_read_settings_needs_nothing() -> None:
    assert read_settings({}) == Settings()
    assert Settings().port == 11434
    assert Settings().model_path == Path("/app/models")
    assert Path("/etc/nlocalmodels/server.yaml") == DEFAULT_CONFIG_PATH


def test_read_settings_takes_every_variable() -> None:
    settings = read_settings(
        {
            "MODEL_PATH": "/m",
            "DEFAULT_MODEL": "a",
            "HOST": "127.0.0.1",
            "PORT": "1",
            "READY_WHEN": "all",
            "CONTEXT_TOKENS": "512",
            "NUM_SLOTS": "4",
            "NUM_THREADS": "3",
            "GRACE_SECONDS": "7",
        }
    )
    assert settings == Settings(Path("/m"), "a", "127.0.0.1", 1, "all", 512, 4, 3, 7)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "0"),
        ("PORT", "http"),
        ("NUM_SLOTS", "-1"),
        ("READY_WHEN", "some"),
        ("CONTEXT_TOKENS", "1.5"),
        ("RELOAD", "rollout"),
        ("RELOAD_SECONDS", "nan"),
        ("RELOAD_SECONDS", "soon"),
        ("MAX_REQUESTS", "0"),
        ("REQUEST_SECONDS", "1e3"),
        ("HANG_SECONDS", "0"),
    ],
)
def test_read_settings_names_a_wrong_variable(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{name}='{value}'"):
        read_settings({name: value})


def test_limits_of_requests_come_from_server_yaml_or_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "server.yaml"
    path.write_text("maxRequests: 7\nrequestSeconds: 8\nhangSeconds: 9\n")
    settings = read_settings({"SERVER_CONFIG": str(path), "HANG_SECONDS": "10"})
    assert (settings.max_requests, settings.request_seconds, settings.hang_seconds) == (7, 8, 10)


def test_grace_of_zero_seconds_is_none() -> None:
    assert read_settings({"GRACE_SECONDS": "0"}).grace_seconds == 0


def test_digits_that_are_no_number_are_refused() -> None:
    with pytest.raises(SettingsError, match="PORT"):
        read_settings({"PORT": "²"})


def test_server_yaml_goes_before_the_defaults(config_path: Path) -> None:
    settings = read_settings({"SERVER_CONFIG": str(config_path)})
    assert settings == Settings(
        ready_when="all",
        context_tokens=256,
        num_slots=4,
        num_threads=3,
        grace_seconds=7,
        models=(DeclaredModel("a", "a.gguf", 128, 2, 1), DeclaredModel("b", "b.gguf")),
        config_path=config_path,
    )


def test_a_variable_goes_before_server_yaml_and_before_what_that_says_of_one_model(config_path: Path) -> None:
    environ = {"READY_WHEN": "default", "CONTEXT_TOKENS": "512", "NUM_SLOTS": "8", "NUM_THREADS": "5", "GRACE_SECONDS": "0"}
    settings = read_settings({"SERVER_CONFIG": str(config_path), **environ})
    assert settings == Settings(
        context_tokens=512,
        num_slots=8,
        num_threads=5,
        grace_seconds=0,
        models=(DeclaredModel("a", "a.gguf"), DeclaredModel("b", "b.gguf")),
        config_path=config_path,
    )


def test_a_reload_is_asked_for_by_either_and_the_default_model_too(config_path: Path) -> None:
    config_path.write_text("reload: live\ndefaultModel: a\nset: 0123456789ab\n")
    environ = {"SERVER_CONFIG": str(config_path)}
    settings = read_settings(environ)
    assert settings == Settings(reload="live", default_model="a", set_id="0123456789ab", config_path=config_path)
    assert read_settings({**environ, "RELOAD": "off", "DEFAULT_MODEL": "b", "RELOAD_SECONDS": "0.5"}) == Settings(
        default_model="b", set_id="0123456789ab", config_path=config_path, reload_seconds=0.5
    )


def test_changed_settings_are_taken_when_two_readings_agree(config_path: Path) -> None:
    source = SettingsSource({"SERVER_CONFIG": str(config_path)})
    assert source.read().grace_seconds == 7
    assert source.read_changed() is None
    config_path.write_text("graceSeconds: 8\n")
    assert source.read_changed() is None
    changed = source.read_changed()
    assert changed is not None
    assert changed.grace_seconds == 8
    assert source.read_changed() is None


def test_what_is_wrong_with_changed_settings_is_said_once(config_path: Path) -> None:
    source = SettingsSource({"SERVER_CONFIG": str(config_path)})
    for change, problem in ((lambda: config_path.write_text("x: 1\n"), "x: unknown key"), (config_path.unlink, "it is gone")):
        change()
        assert source.read_changed() is None
        with pytest.raises(SettingsError, match=problem):
            source.read_changed()
        assert source.read_changed() is None


def test_a_server_yaml_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"SERVER_CONFIG='{tmp_path}/absent.yaml': there is no such file"):
        read_settings({"SERVER_CONFIG": f"{tmp_path}/absent.yaml"})


def test_everything_that_is_wrong_is_named_at_once(config_path: Path) -> None:
    config_path.write_text("graceSeconds: soon\nmodel: []\n")
    with pytest.raises(SettingsError) as caught:
        read_settings({"SERVER_CONFIG": str(config_path), "PORT": "0", "NUM_SLOTS": "many"})
    for part in (f"{config_path}: ", " graceSeconds: 'soon'", " model: unknown key", "PORT='0'", "NUM_SLOTS='many'"):
        assert part in str(caught.value)


def test_the_server_exits_with_2_when_server_yaml_is_wrong(config_path: Path) -> None:
    config_path.write_text("numSlots: 0\n")
    process = subprocess.run(
        [sys.executable, "-m", "nlocalmodels_server"],
        env={"SERVER_CONFIG": str(config_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 2
    assert f"{config_path}: numSlots: 0 is not a whole number from 1 to 256" in process.stderr
    assert "Traceback" not in process.stderr
