"""server.yaml: what it may say, and how what it must not say is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nlocalmodels_server import config as config_module
from nlocalmodels_server.config import Config, DeclaredModel, load_config, parse_config

MODEL: dict[str, Any] = {"id": "llama-2-7b-chat", "file": "llama-2-7b-chat.Q4_K_M.gguf"}


def test_every_key_is_read() -> None:
    document = {
        "readyWhen": "all",
        "contextTokens": 8192,
        "numSlots": 32,
        "numThreads": 4,
        "graceSeconds": 0,
        "serveUndeclared": False,
        "defaultModel": "b",
        "reload": "live",
        "set": "0123456789ab",
        "models": [{**MODEL, "contextTokens": 4096, "numSlots": 8, "numThreads": 2}, {"id": "b", "file": "team/x/b.GGUF"}],
    }
    config, problems = parse_config(document)
    assert problems == []
    assert config == Config(
        ready_when="all",
        context_tokens=8192,
        num_slots=32,
        num_threads=4,
        grace_seconds=0,
        serve_undeclared=False,
        models=(DeclaredModel(MODEL["id"], MODEL["file"], 4096, 8, 2), DeclaredModel("b", "team/x/b.GGUF")),
        default_model="b",
        reload="live",
        set_id="0123456789ab",
    )


def test_the_shape_in_the_modules_docstring_is_a_good_one() -> None:
    assert config_module.__doc__ is not None
    config, problems = parse_config(yaml.safe_load(config_module.__doc__.partition("\n\n")[2]))
    assert problems == []
    assert config.models is not None


@pytest.mark.parametrize("document", [None, {}, {"numThreads": None}])
def test_every_key_is_optional(document: object) -> None:
    assert parse_config(document) == (Config(), [])


def test_a_bare_off_is_what_yaml_makes_of_it() -> None:
    assert parse_config(yaml.safe_load("reload: off"))[0].reload == "off"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("reload: on", "reload: True is not known; set it to off or live."),
        ("reload: rollout", "reload: 'rollout' is not known; set it to off or live."),
        ("set: 123456789012", "set: 123456789012 is not usable"),
        ("set: 0123456789AB", "set: '0123456789AB' is not usable"),
        ("set: ../../etc/pass", "set: '../../etc/pass' is not usable"),
        ("defaultModel: [a]", "defaultModel: ['a'] is not usable; give the id of a model or leave it out."),
    ],
)
def test_a_wrong_key_of_a_reload_is_named(text: str, problem: str) -> None:
    _, (found,) = parse_config(yaml.safe_load(text))
    assert found.startswith(problem)


def test_no_models_declared_is_not_the_same_as_nothing_said_of_them() -> None:
    assert parse_config({"models": []})[0].models == ()
    assert parse_config({})[0].models is None


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ([], "must be a mapping; known keys are readyWhen, "),
        ("text", "must be a mapping"),
        ({"ready_when": "all"}, "ready_when: unknown key; known are readyWhen, "),
        ({1: 2}, "1: unknown key"),
        ({"readyWhen": "some"}, "readyWhen: 'some' is not known; set it to default or all."),
        ({"readyWhen": ["all"]}, "readyWhen: ['all'] is not known"),
        ({"serveUndeclared": "no"}, "serveUndeclared: 'no' is neither true nor false; "),
        ({"contextTokens": 63}, "contextTokens: 63 is not a whole number from 64 to 16777216; set it so or leave it out."),
        ({"contextTokens": 4096.0}, "contextTokens: 4096.0 is not"),
        ({"numSlots": "8"}, "numSlots: '8' is not a whole number from 1 to 256"),
        ({"numThreads": True}, "numThreads: True is not"),
        ({"graceSeconds": -1}, "graceSeconds: -1 is not"),
        ({"graceSeconds": [0] * 1000}, "graceSeconds: [0, 0, "),
        ({"models": None}, "models: None is not a list; give one, which may be empty ([]), or leave the key out."),
        ({"models": {"a": MODEL}}, "models: {'a': "),
        ({"models": ["a.gguf"]}, "models[0]: must be a mapping; known keys are id, file, "),
        ({"models": [{**MODEL, "context": 1}]}, "models[0].context: unknown key; known are id, file, contextTokens, "),
        ({"models": [MODEL, {"file": "b.gguf"}]}, "models[1].id: is missing; give "),
        (
            {"models": [{**MODEL, "kvType": "q4"}]},
            "models[0].kvType: 'q4' is not known; set it to f16 or q8_0 or f32, or leave it out.",
        ),
        (
            {"models": [{**MODEL, "kvType": "q8_0", "flashAttention": False}]},
            "models[0].kvType: 'q8_0' needs flash attention; ",
        ),
        ({"models": [{**MODEL, "flashAttention": "on"}]}, "models[0].flashAttention: 'on' is neither true nor false; "),
        ({"models": [{**MODEL, "widenWeights": 1}]}, "models[0].widenWeights: 1 is neither true nor false; "),
        ({"models": [{**MODEL, "load": "lazy"}]}, "models[0].load: 'lazy' is not known; set it to boot or onDemand"),
        (
            {"models": [{**MODEL, "interTokenMilliseconds": 5}]},
            "models[0].interTokenMilliseconds: 5 is not a whole number from 10 to 60000",
        ),
        ({"models": [{**MODEL, "numPrefillThreads": 0}]}, "models[0].numPrefillThreads: 0 is not a whole number from 1 to 512"),
        ({"hangSeconds": 0}, "hangSeconds: 0 is not a whole number from 1 to 86400"),
        ({"models": [{"id": "a b", "file": "b.gguf"}]}, "models[0].id: 'a b' is not usable; give "),
        ({"models": [{"id": "a"}]}, "models[0].file: is missing; give "),
        ({"models": [{**MODEL, "numSlots": 0}]}, "models[0].numSlots: 0 is not a whole number from 1 to 256; "),
        ({"models": [MODEL, {**MODEL, "file": "b.gguf"}]}, "models: id 'llama-2-7b-chat' stands twice; "),
        ({"models": [MODEL, {**MODEL, "id": "b"}]}, "models: file 'llama-2-7b-chat.Q4_K_M.gguf' stands twice; "),
        (
            {"models": [{"id": "a", "file": "a-00002-of-00003.gguf"}]},
            "models[0].file: 'a-00002-of-00003.gguf' is a later shard; give the first one, -00001-of-00003.gguf.",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_path_and_a_remedy(document: object, problem: str) -> None:
    _, problems = parse_config(document)
    assert len(problems) == 1
    assert problems[0].startswith(problem)
    assert len(problems[0]) < 300


@pytest.mark.parametrize(
    "file",
    ["/a.gguf", "../a.gguf", "x/../a.gguf", ".hidden.gguf", "a/b/c/d.gguf", "a.bin", ".gguf", "a//b.gguf", "a\n.gguf", 7],
)
def test_a_file_that_the_scan_would_never_find_is_refused(file: object) -> None:
    _, problems = parse_config({"models": [{"id": "a", "file": file}]})
    assert len(problems) == 1
    assert problems[0].startswith("models[0].file: ")


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "server.yaml"
    path.write_text("readyWhen: never\nports: 1\nmodels: [{id: '', file: a.gguf, numSlots: 0}]\n")
    _, problems = load_config(path, must_exist=True)
    text = " ".join(problems)
    assert text.startswith(f"{path}: ")
    for key in ("readyWhen: ", "ports: ", "models[0].id: ", "models[0].numSlots: "):
        assert f" {key}" in text


@pytest.mark.parametrize("content", [b"models: [", b"\xff\xfe\x00", b"a: !!python/object:os.system {}", b"2024-99-99"])
def test_a_file_that_is_not_yaml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "server.yaml"
    path.write_bytes(content)
    _, [problem] = load_config(path, must_exist=True)
    assert problem.startswith(f"{path}: not YAML: ")
    assert "\n" not in problem


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert load_config(tmp_path, must_exist=False)[1] == [
        f"{tmp_path}: cannot be read (Is a directory); make it readable or take it away."
    ]


def test_a_file_that_is_not_there_says_nothing_unless_it_must(tmp_path: Path) -> None:
    for path in (tmp_path / "server.yaml", Path("/etc/hostname/server.yaml")):
        assert load_config(path, must_exist=False) == (Config(), [])
        _, [problem] = load_config(path, must_exist=True)
        assert problem == f"SERVER_CONFIG='{path}': there is no such file; mount it or leave it out."
