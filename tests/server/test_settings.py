from __future__ import annotations

from pathlib import Path

import pytest

from nlocalmodels_server.settings import Settings, SettingsError, read_settings


def test_read_settings_needs_nothing() -> None:
    assert read_settings({}) == Settings()
    assert Settings().port == 11434
    assert Settings().model_path == Path("/app/models")


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
    ("name", "value"), [("PORT", "0"), ("PORT", "http"), ("NUM_SLOTS", "-1"), ("READY_WHEN", "some"), ("CONTEXT_TOKENS", "1.5")]
)
def test_read_settings_names_a_wrong_variable(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{name}='{value}'"):
        read_settings({name: value})


def test_grace_of_zero_seconds_is_none() -> None:
    assert read_settings({"GRACE_SECONDS": "0"}).grace_seconds == 0


def test_digits_that_are_no_number_are_refused() -> None:
    with pytest.raises(SettingsError, match="PORT"):
        read_settings({"PORT": "²"})
