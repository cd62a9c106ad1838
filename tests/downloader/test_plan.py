from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nlocalmodels_downloader import volume as volume_module
from nlocalmodels_downloader.config import Model
from nlocalmodels_downloader.plan import Action, plan_file, plan_model
from nlocalmodels_downloader.sources import parse_source
from nlocalmodels_downloader.volume import Verified, Volume
from support.downloads import HUB_COMMIT, sha256

DATA = b"what the model is"
SOURCE = "https://example.org/m.gguf"


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(tmp_path, "pod")


def _model(name: str = "m", source: str = SOURCE, digest: str | None = sha256(DATA), size_bytes: int | None = None) -> Model:
    return Model(name, f"{name}.gguf", parse_source(source), digest, size_bytes)


def _present(volume: Volume, name: str = "m", source: str = SOURCE, is_durable: bool = False) -> None:
    volume.path(f"{name}.gguf").write_bytes(DATA)
    volume.record_verified(f"{name}.gguf", Verified(sha256(DATA), source), is_durable)


def test_plan_fetches_what_is_not_there(volume: Volume) -> None:
    assert plan_file(volume, _model()) is Action.FETCH


def test_plan_keeps_what_was_verified(volume: Volume) -> None:
    _present(volume)
    assert plan_file(volume, _model()) is Action.KEEP
    assert plan_file(volume, _model(source="https://elsewhere.example/x.gguf")) is Action.KEEP


def test_plan_verifies_what_it_does_not_know(volume: Volume) -> None:
    volume.path("m.gguf").write_bytes(DATA)
    assert plan_file(volume, _model()) is Action.VERIFY
    assert plan_file(volume, _model(size_bytes=len(DATA))) is Action.VERIFY


def test_plan_fetches_what_cannot_be_the_declared_file(volume: Volume) -> None:
    volume.path("m.gguf").write_bytes(DATA)
    assert plan_file(volume, _model(size_bytes=len(DATA) + 1)) is Action.FETCH
    assert plan_file(volume, _model(digest=None)) is Action.FETCH, "nothing tells what it is"


def test_plan_verifies_a_changed_file(volume: Volume) -> None:
    _present(volume)
    volume.path("m.gguf").write_bytes(DATA[::-1])
    assert plan_file(volume, _model()) is Action.VERIFY


def test_plan_does_not_keep_a_file_of_another_digest(volume: Volume) -> None:
    _present(volume)
    assert plan_file(volume, _model(digest=sha256(b"new"))) is not Action.KEEP


def test_plan_takes_a_folder_for_no_model(volume: Volume) -> None:
    volume.path("m.gguf").mkdir()
    assert plan_file(volume, _model()) is Action.FETCH


@pytest.mark.parametrize(
    ("declared", "recorded", "action"),
    [
        (f"hf://o/r/m.gguf@{HUB_COMMIT}", f"hf://o/r/m.gguf@{HUB_COMMIT}", Action.KEEP),
        (f"hf://o/r/m.gguf@{HUB_COMMIT}", f"hf://o/r/m.gguf@{HUB_COMMIT[::-1]}", Action.FETCH),
        ("hf://o/r/m.gguf@main", "hf://o/r/m.gguf@main", Action.FETCH),
        (SOURCE, SOURCE, Action.FETCH),
    ],
)
def test_plan_keeps_a_file_without_digest_only_if_it_is_of_the_same_commit(
    volume: Volume, declared: str, recorded: str, action: Action
) -> None:
    _present(volume, source=recorded)
    assert plan_file(volume, _model(source=declared, digest=None)) is action


@pytest.mark.parametrize(("is_durable", "action"), [(True, Action.KEEP), (False, Action.VERIFY)])
def test_plan_verifies_what_a_power_cut_may_have_taken(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, is_durable: bool, action: Action
) -> None:
    _present(volume, is_durable=is_durable)
    assert plan_file(volume, _model()) is Action.KEEP
    monkeypatch.setattr(volume_module, "boot_id", lambda: "another boot")
    assert plan_file(volume, _model()) is action


def test_plan_of_a_split_model_is_what_its_neediest_file_needs(volume: Volume) -> None:
    model = replace(_model("a"), shards=(_model("b"), _model("c")))
    for name in ("a", "b", "c"):
        assert plan_model(volume, model) is Action.FETCH
        volume.path(f"{name}.gguf").write_bytes(DATA)
    for name in ("a", "b", "c"):
        assert plan_model(volume, model) is Action.VERIFY
        _present(volume, name)
    assert plan_model(volume, model) is Action.KEEP


def test_plan_writes_nothing(volume: Volume, tmp_path: Path) -> None:
    plan_model(volume, _model())
    assert list(tmp_path.iterdir()) == []
