from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from nlocalmodels_downloader.config import load_config, parse_config
from nlocalmodels_downloader.errors import ConfigError

DIGEST = "ab" * 32


def _document(**overrides: object) -> dict[str, object]:
    entry: dict[str, object] = {"id": "m", "file": "m.gguf", "source": "https://example.org/m.gguf", "sha256": DIGEST}
    entry.update(overrides)
    return {"modelPath": "/app/models", "models": [{key: value for key, value in entry.items() if value is not None}]}


def test_config_reads_every_key(tmp_path: Path) -> None:
    path = tmp_path / "downloads.yaml"
    path.write_text(yaml.safe_dump({**_document(sizeBytes=7, sha256=DIGEST.upper()), "allowUnverified": True}))
    config = load_config(path)
    [model] = config.models
    assert (str(config.model_path), config.allow_unverified) == ("/app/models", True)
    assert (model.id, model.file, model.sha256, model.size_bytes) == ("m", "m.gguf", DIGEST, 7)
    assert model.source.text == "https://example.org/m.gguf"


def test_config_may_declare_no_model() -> None:
    config, problems = parse_config({"modelPath": "/x", "models": []})
    assert problems == []
    assert config is not None
    assert config.models == ()


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({"id": None}, "models[0].id: is missing"),
        ({"id": "a b"}, "models[0].id: 'a b' is not usable"),
        ({"id": 7}, "models[0].id: '7' is not usable"),
        ({"file": "m.safetensors"}, "models[0].file: 'm.safetensors' is not usable"),
        ({"file": "../m.gguf"}, "models[0].file"),
        ({"file": "a/m.gguf"}, "models[0].file"),
        ({"file": ".m.gguf"}, "models[0].file"),
        ({"file": "m.gguf\n"}, "models[0].file"),
        ({"sha256": "abc"}, "models[0].sha256"),
        ({"sha256": 12}, "models[0].sha256"),
        ({"sizeBytes": 0}, "models[0].sizeBytes"),
        ({"sizeBytes": True}, "models[0].sizeBytes"),
        ({"sizeBytes": "7"}, "models[0].sizeBytes"),
        ({"source": None}, "models[0].source: is missing"),
        ({"source": "ftp://example.org/m.gguf"}, "models[0].source"),
        ({"sha": DIGEST}, "models[0].sha: unknown key"),
    ],
)
def test_config_names_the_key_of_a_problem(overrides: dict[str, object], problem: str) -> None:
    config, problems = parse_config(_document(**overrides))
    assert config is None
    assert problem in " ".join(problems)


def test_config_names_all_problems_at_once() -> None:
    _, problems = parse_config({"models": [{}, "x"], "allowUnverified": "yes", "extra": 1})
    text = " ".join(problems)
    for part in ("modelPath:", "allowUnverified:", "extra: unknown", "models[0].id", "models[0].source", "models[1]:"):
        assert part in text


@pytest.mark.parametrize("key", ["id", "file"])
def test_config_refuses_a_name_that_stands_twice(key: str) -> None:
    first = {"id": "a", "file": "a.gguf", "source": "https://example.org/a"}
    second = {"id": "b", "file": "b.gguf", "source": "https://example.org/b"}
    second[key] = first[key].upper()
    _, problems = parse_config({"modelPath": "/x", "models": [first, second]})
    assert len(problems) == 1
    assert "stands twice" in problems[0]


def test_config_tells_no_secret_of_a_source() -> None:
    _, problems = parse_config(_document(source="ftp://user:PASSWORD@example.org/m.gguf?sig=SECRET"))
    assert "PASSWORD" not in " ".join(problems)
    assert "SECRET" not in " ".join(problems)


@pytest.mark.parametrize(
    "content",
    [b"a: [", b"\xff\xfe\x00", b"- a", b"", b"modelPath: 2024-99-99", b"x: " + b"9" * 5000],
    ids=lambda c: repr(c[:12]),
)
def test_config_refuses_a_file_that_is_not_its_form(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "downloads.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"downloads\.yaml"):
        load_config(path)


def test_config_refuses_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config"):
        load_config(tmp_path / "absent.yaml")


def test_broken_yaml_is_placed_without_showing_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "downloads.yaml"
    path.write_text('models:\n  - source: "https://user:hunter2@example.org/m.gguf?signature=secret\n')
    with pytest.raises(ConfigError, match=r"not YAML: .* at line \d+, column \d+; correct it") as raised:
        load_config(path)
    assert not [word for word in ("hunter2", "secret") if word in str(raised.value)]


@pytest.mark.parametrize("key", ["sha256", "mirrors", "file", "id"])
def test_address_in_the_wrong_place_is_shown_without_its_secrets(key: str) -> None:
    _, problems = parse_config(_document(**{key: "https://user:hunter2@example.org/m.gguf?signature=secret"}))
    assert any(f"models[0].{key}: " in problem for problem in problems)
    assert not [word for word in ("hunter2", "secret") if word in " ".join(problems)]
