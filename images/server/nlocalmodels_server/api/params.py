"""Reads request bodies of OpenAI's API into generation requests. Pure; every refusal names its field.

Source: OpenAI's API reference for /v1/completions and /v1/chat/completions; top_k, min_p and repeat_penalty as in llama-server.
Unknown fields are ignored, as OpenAI's clients send ever new ones; known ones that would change the answer and are not
supported are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nlocalmodels_server.api.errors import ApiError, bad_param
from nlocalmodels_server.engine.sampling import SamplingParams
from nlocalmodels_server.workers.protocol import GenerationRequest

_MAX_CHOICES = 64
_MAX_STOPS = 16
_DEFAULT_COMPLETION_TOKENS = 16
_ROLES = ("system", "developer", "user", "assistant", "tool")

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """What to generate, one request per choice, and how to answer."""

    model: str | None
    generations: list[GenerationRequest]
    num_choices_per_prompt: int
    stream: bool
    include_usage: bool


def parse_completion(body: Body) -> ParsedRequest:
    """Parses a body of /v1/completions.

    Raises:
        ApiError: a field is wrong or not supported.
    """
    _refuse_unsupported(body, {"suffix": (None, ""), "echo": (None, False), "best_of": (None, 1), "logprobs": (None, 0)})
    common = _parse_common(body, "max_tokens", default_tokens=_DEFAULT_COMPLETION_TOKENS)
    generations = []
    for prompt in _prompts(body):
        tokens = prompt if isinstance(prompt, list) else None
        text = prompt if isinstance(prompt, str) else None
        generations += [GenerationRequest(prompt=text, prompt_tokens=tokens, **common)] * _count(body)
    return _answer_as(body, generations)


def parse_chat_completion(body: Body) -> ParsedRequest:
    """Parses a body of /v1/chat/completions.

    Raises:
        ApiError: a field is wrong or not supported.
    """
    _refuse_unsupported(
        body,
        {
            "tools": (None, []),
            "functions": (None, []),
            "response_format": (None, {"type": "text"}),
            "logprobs": (None, False),
            "top_logprobs": (None, 0),
            "modalities": (None, ["text"]),
        },
    )
    limit = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    common = _parse_common(body, limit, default_tokens=None)
    return _answer_as(body, [GenerationRequest(messages=_messages(body), **common)] * _count(body))


def _answer_as(body: Body, generations: list[GenerationRequest]) -> ParsedRequest:
    if len(generations) > _MAX_CHOICES:
        raise bad_param("n", f"{len(generations)} choices are asked for; at most {_MAX_CHOICES} in one request.")
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise bad_param("model", "must be a string.")
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise bad_param("stream_options", "must be an object.")
    return ParsedRequest(model, generations, _count(body), _boolean(body, "stream"), _boolean(options, "include_usage"))


def _parse_common(body: Body, limit: str, default_tokens: int | None) -> dict[str, Any]:
    defaults = SamplingParams()
    seed = _integer(body, "seed", -(1 << 63), (1 << 64) - 1)
    return {
        "max_new_tokens": _integer(body, limit, 1, 1 << 31) or default_tokens,
        "stops": _stops(body),
        "sampling": SamplingParams(
            temperature=_number(body, "temperature", 0, 100, defaults.temperature),
            top_k=defaults.top_k if (top_k := _integer(body, "top_k", 0, 1 << 31)) is None else top_k,
            top_p=_number(body, "top_p", 0, 1, defaults.top_p),
            min_p=_number(body, "min_p", 0, 1, defaults.min_p),
            repeat_penalty=_number(body, "repeat_penalty", 0.01, 100, defaults.repeat_penalty),
            frequency_penalty=_number(body, "frequency_penalty", -2, 2, defaults.frequency_penalty),
            presence_penalty=_number(body, "presence_penalty", -2, 2, defaults.presence_penalty),
            logit_bias=_logit_bias(body),
            seed=seed,
        ),
    }


def _refuse_unsupported(body: Body, neutral: dict[str, tuple[Any, ...]]) -> None:
    """Refuses fields that have another than a neutral value: ignoring them would give an answer that was not asked for."""
    for name, values in neutral.items():
        if body.get(name) not in values:
            raise ApiError(
                400, f"{name}: is not supported by this server; leave it out.", param=name, code="unsupported_parameter"
            )


def _number(body: Body, name: str, low: float, high: float, default: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise bad_param(name, f"{value!r} is not a number from {low:g} to {high:g}.")
    return float(value)


def _integer(body: Body, name: str, low: int, high: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise bad_param(name, f"{value!r} is not a whole number from {low} to {high}.")
    return value


def _boolean(body: Body, name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise bad_param(name, f"{value!r} is neither true nor false.")
    return bool(value)


def _count(body: Body) -> int:
    return _integer(body, "n", 1, _MAX_CHOICES) or 1


def _stops(body: Body) -> list[str]:
    stops = body.get("stop")
    if stops is None:
        return []
    stops = [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list) or len(stops) > _MAX_STOPS or not all(isinstance(stop, str) and stop for stop in stops):
        raise bad_param("stop", f"must be a string or up to {_MAX_STOPS} of them, none empty.")
    return stops


def _logit_bias(body: Body) -> tuple[tuple[int, float], ...]:
    biases = body.get("logit_bias") or {}
    if not isinstance(biases, dict):
        raise bad_param("logit_bias", "must map token numbers to biases from -100 to 100.")
    pairs = []
    for token, bias in biases.items():
        if (
            not _is_token_number(token)
            or isinstance(bias, bool)
            or not isinstance(bias, int | float)
            or not -100 <= bias <= 100
        ):
            raise bad_param("logit_bias", f"{token!r}: {bias!r} is not a token number with a bias from -100 to 100.")
        pairs.append((int(token), float(bias)))
    return tuple(pairs)


def _is_token_number(text: str) -> bool:
    # isdigit alone takes in what int does not: superscripts, and more digits than it converts.
    return text.isascii() and text.isdigit() and len(text) <= 10


def _prompts(body: Body) -> list[str | list[int]]:
    """Returns the prompts: a string, token numbers, or a list of either."""
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if _are_tokens(prompt):
            return [prompt]
        if all(isinstance(item, str) or (isinstance(item, list) and item and _are_tokens(item)) for item in prompt):
            return prompt
    raise bad_param("prompt", "must be a string, a list of token numbers, or a list of either.")


def _are_tokens(items: list[Any]) -> bool:
    return all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < 1 << 31 for item in items)


def _messages(body: Body) -> list[dict[str, Any]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad_param("messages", "must be a list with at least one message.")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise bad_param(where, "must be an object with role and content.")
    role = message.get("role")
    if role not in _ROLES:
        raise bad_param(f"{where}.role", f"{role!r} is not one of {', '.join(_ROLES)}.")
    # Templates know the older name.
    return {"role": "system" if role == "developer" else role, "content": _content(message.get("content"), where)}


def _content(content: Any, where: str) -> str:
    """Returns the text of a message, joined from its parts."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise bad_param(f"{where}.content", "must be a string or a list of text parts.")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise bad_param(f"{where}.content", f"a part of type {kind!r} is not supported; only text is.")
        texts.append(part["text"])
    return "".join(texts)
