from __future__ import annotations

from typing import Any

import pytest

from nlocalmodels_server.api.errors import ApiError
from nlocalmodels_server.api.params import parse_chat_completion, parse_completion
from nlocalmodels_server.engine.sampling import SamplingParams

USER = {"role": "user", "content": "Hi"}


def test_parse_completion_has_openais_defaults() -> None:
    parsed = parse_completion({"prompt": "Hi"})
    (generation,) = parsed.generations
    assert (generation.prompt, generation.max_new_tokens, generation.sampling) == ("Hi", 16, SamplingParams())
    assert (parsed.model, parsed.stream, parsed.include_usage) == (None, False, False)


def test_parse_completion_reads_every_sampling_field() -> None:
    body = {
        "prompt": "Hi",
        "temperature": 0.5,
        "top_k": 0,
        "top_p": 0.9,
        "min_p": 0.1,
        "repeat_penalty": 1.1,
        "frequency_penalty": 0.2,
        "presence_penalty": -0.2,
        "logit_bias": {"7": -100},
        "seed": 42,
        "stop": ["a", "b"],
        "max_tokens": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    parsed = parse_completion(body)
    (generation,) = parsed.generations
    assert generation.sampling == SamplingParams(0.5, 0, 0.9, 0.1, 1.1, 0.2, -0.2, ((7, -100.0),), 42)
    assert (generation.stops, generation.max_new_tokens) == (["a", "b"], 3)
    assert (parsed.stream, parsed.include_usage) == (True, True)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", [("a", None)]),
        ([1, 2], [(None, [1, 2])]),
        (["a", "b"], [("a", None), ("b", None)]),
        ([[1], [2, 3]], [(None, [1]), (None, [2, 3])]),
    ],
)
def test_parse_completion_takes_every_form_of_prompt(prompt: Any, expected: list[tuple[str | None, list[int] | None]]) -> None:
    parsed = parse_completion({"prompt": prompt, "n": 2})
    assert [(g.prompt, g.prompt_tokens) for g in parsed.generations] == [item for item in expected for _ in range(2)]


def test_parse_chat_completion_prefers_max_completion_tokens() -> None:
    def limit(**fields: Any) -> int | None:
        return parse_chat_completion({"messages": [USER], **fields}).generations[0].max_new_tokens

    assert limit() is None
    assert limit(max_tokens=5) == 5
    assert limit(max_tokens=5, max_completion_tokens=7) == 7


def test_parse_chat_completion_joins_text_parts_and_knows_developers() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    parsed = parse_chat_completion({"messages": [{"role": "developer", "content": "x"}, {"role": "user", "content": parts}]})
    assert parsed.generations[0].messages == [{"role": "system", "content": "x"}, {"role": "user", "content": "ab"}]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": "a", "temperature": "hot"}, "temperature"),
        ({"prompt": "a", "temperature": float("nan")}, "temperature"),
        ({"prompt": "a", "temperature": True}, "temperature"),
        ({"prompt": "a", "top_p": 1.5}, "top_p"),
        ({"prompt": "a", "top_k": 1.5}, "top_k"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "n": 0}, "n"),
        ({"prompt": ["a"] * 60, "n": 2}, "n"),
        ({"prompt": "a", "stop": [1]}, "stop"),
        ({"prompt": "a", "stop": ""}, "stop"),
        ({"prompt": "a", "stop": ["x"] * 17}, "stop"),
        ({"prompt": "a", "stream": "yes"}, "stream"),
        ({"prompt": "a", "stream_options": 1}, "stream_options"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
        ({"prompt": "a", "logit_bias": {"1": 101}}, "logit_bias"),
        ({"prompt": "a", "seed": "x"}, "seed"),
        ({"prompt": "a", "model": 1}, "model"),
        ({"prompt": "a", "logprobs": 1}, "logprobs"),
        ({"prompt": "a", "echo": True}, "echo"),
    ],
)
def test_parse_completion_names_the_wrong_field(body: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_completion(body)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert param in str(caught.value)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [USER, {"role": "robot", "content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [USER], "tools": [{"type": "function"}]}, "tools"),
        ({"messages": [USER], "response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_parse_chat_completion_names_the_wrong_field(body: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_chat_completion(body)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_parse_chat_completion_ignores_fields_that_change_nothing() -> None:
    body = {"messages": [USER], "user": "u", "metadata": {}, "store": False, "tools": [], "response_format": {"type": "text"}}
    assert len(parse_chat_completion(body).generations) == 1
