from __future__ import annotations

import pytest

from nlocalmodels_server.models.model_ids import Shard, name_models, parse_shard, short_id


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("llama-2-7b-chat.Q4_K_M.gguf", "llama-2-7b-chat"),
        ("gemma-2-2b-it-Q4_K_M.gguf", "gemma-2-2b-it"),
        ("gemma-3-270m-q4_k_m.gguf", "gemma-3-270m"),
        ("Qwen3-0.6B-Q8_0.gguf", "Qwen3-0.6B"),
        ("smollm2-360m-instruct-q8_0.gguf", "smollm2-360m-instruct"),
        ("model.F16.gguf", "model"),
        ("model-bf16.gguf", "model"),
        ("model-fp16.GGUF", "model"),
        ("mixtral-IQ2_XXS.gguf", "mixtral"),
        ("phi.IQ4_NL.gguf", "phi"),
        ("bit-TQ1_0.gguf", "bit"),
        ("gpt-oss-20b-MXFP4.gguf", "gpt-oss-20b"),
        ("Qwen3-UD-Q4_K_XL.gguf", "Qwen3"),
        ("big-Q4_K_M-00001-of-00003.gguf", "big"),
        ("sub/folder/model_Q5_K_S.gguf", "model"),
        ("llama-2-7b.gguf", "llama-2-7b"),
        ("Q4_K_M.gguf", "Q4_K_M"),
        ("quantum-q.gguf", "quantum-q"),
    ],
)
def test_short_id_leaves_the_quantization_out(file: str, expected: str) -> None:
    assert short_id(file) == expected


def test_parse_shard_reads_number_and_count() -> None:
    assert parse_shard("big-Q8_0-00002-of-00004.gguf") == Shard("big-Q8_0", 2, 4)
    assert parse_shard("big-Q8_0.gguf") is None


def test_name_models_keeps_the_quantization_when_ids_collide() -> None:
    models, warnings = name_models(["m.Q8_0.gguf", "m.Q4_K_M.gguf", "n.Q4_0.gguf"], {})
    assert [(model.id, model.aliases) for model in models] == [("m.Q4_K_M", ("m",)), ("m.Q8_0", ()), ("n", ())]
    assert len(warnings) == 1
    assert "m.Q4_K_M.gguf, m.Q8_0.gguf" in warnings[0]


def test_name_models_takes_declared_ids() -> None:
    models, warnings = name_models(
        ["mistral-7b-instruct-v0.2.Q4_K_M.gguf"], {"mistral-7b-instruct-v0.2.Q4_K_M.gguf": "mistral"}
    )
    assert [model.id for model in models] == ["mistral"]
    assert warnings == []


def test_name_models_never_gives_a_declared_id_to_another_file() -> None:
    models, warnings = name_models(["a.Q4_0.gguf", "m.Q8_0.gguf"], {"a.Q4_0.gguf": "m"})
    assert {model.file: model.id for model in models} == {"a.Q4_0.gguf": "m", "m.Q8_0.gguf": "m.Q8_0"}
    assert all("m" not in model.aliases for model in models)
    assert len(warnings) == 1


def test_files_of_one_name_in_two_folders_have_ids_of_their_own() -> None:
    named, _ = name_models(["a.Q4_0.gguf", "sub/a.Q4_0.gguf"], {})
    assert {model.file: model.id for model in named} == {"a.Q4_0.gguf": "a.Q4_0", "sub/a.Q4_0.gguf": "sub/a.Q4_0.gguf"}


def test_one_id_declared_for_two_files_goes_to_the_first() -> None:
    named, _ = name_models(["a.gguf", "b.gguf"], {"a.gguf": "chat", "b.gguf": "chat"})
    assert {model.file: model.id for model in named} == {"a.gguf": "chat", "b.gguf": "b"}


def test_short_name_means_the_file_that_has_it() -> None:
    named, _ = name_models(["m.Q4_0.gguf", "m.gguf"], {})
    assert {model.file: (model.id, model.aliases) for model in named} == {"m.gguf": ("m", ()), "m.Q4_0.gguf": ("m.Q4_0", ())}


def test_name_models_leaves_a_reserved_id_alone() -> None:
    named, warnings = name_models(["m.Q4_0.gguf"], {"m.Q8_0.gguf": "m"}, {"m"})
    assert [(model.id, model.aliases) for model in named] == [("m.Q4_0", ())]
    assert "'m' is the id of another file" in warnings[0]
