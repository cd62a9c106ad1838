"""The catalogue: written by hand, read by the chart, `make run` and, through downloads.yaml, the downloader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import run
from nlocalmodels_downloader.config import parse_config

CATALOGUE: dict[str, Any] = yaml.safe_load(run.CATALOGUE.read_text())
KEYS = {"source", "file", "sha256", "sizeBytes", "license", "contextTokens", "kvBytesPerToken"}


@pytest.mark.parametrize("model_id", CATALOGUE["models"])
def test_every_model_is_pinned_and_complete(model_id: str) -> None:
    model = CATALOGUE["models"][model_id]
    assert KEYS <= set(model) <= KEYS | {"embedding"}
    config, problems = parse_config({"modelPath": "/m", "models": run.declared_models([model_id], CATALOGUE)})
    assert problems == []
    assert config is not None
    (parsed,) = config.models
    assert parsed.source.is_pinned
    assert str(parsed.source).split("@")[0].endswith("/" + parsed.file)
    # Weights are as large as the file; a size in other units would show here.
    assert parsed.size_bytes is not None
    assert 10**7 < parsed.size_bytes < 10**11


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("starter", ["gemma-2-2b-it", "llama-2-7b-chat"]),
        ("production", ["gemma-2-2b-it", "llama-2-7b-chat", "mistral-7b-instruct", "llama-2-13b-chat"]),
    ],
)
def test_sets_hold_what_the_guide_names(name: str, expected: list[str]) -> None:
    assert CATALOGUE["sets"][name] == expected


def test_every_set_resolves_to_one_config() -> None:
    for name in CATALOGUE["sets"]:
        _, problems = parse_config({"modelPath": "/m", "models": run.declared_models([name], CATALOGUE)})
        assert problems == []


def test_enterprise_holds_production_and_more() -> None:
    assert CATALOGUE["sets"]["enterprise"][:4] == CATALOGUE["sets"]["production"]
    assert len(CATALOGUE["sets"]["enterprise"]) > 4


def test_model_that_is_not_in_the_catalogue_is_named_with_those_that_are() -> None:
    with pytest.raises(SystemExit, match=r"'gpt-4' is not in the catalogue; there are starter, .*llama-2-7b-chat"):
        run.declared_models(["gpt-4"], CATALOGUE)


def test_hub_source_gets_its_id_and_file_from_its_name() -> None:
    source = f"hf://bartowski/gemma-2-2b-it-GGUF/gemma-2-2b-it-Q4_K_M.gguf@{'0' * 40}"
    (entry,) = run.declared_models([source], CATALOGUE)
    assert entry == {"id": "gemma-2-2b-it", "file": "gemma-2-2b-it-Q4_K_M.gguf", "source": source}


def test_facts_of_a_model_stand_in_the_catalogue_alone() -> None:
    """Whoever needs a digest reads it there."""
    root = Path(run.ROOT)
    digests = {model["sha256"] for model in CATALOGUE["models"].values()}
    for path in [*root.glob("images/**/*.py"), *root.glob("tools/*.py"), *root.glob("tests/**/*.py")]:
        text = path.read_text()
        assert not [digest for digest in digests if digest in text], path
