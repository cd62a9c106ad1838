"""The API as OpenAI's own client sees it, and as raw HTTP where the client would hide something."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from support.serving import RunningServer


def greedy(server: RunningServer, prompt: str, model: str = "tiny", max_tokens: int = 24) -> str:
    return server.openai().completions.create(model=model, prompt=prompt, temperature=0, max_tokens=max_tokens).choices[0].text


def test_models_lists_ids_and_facts(tiny_server: RunningServer) -> None:
    models = tiny_server.openai().models.list().data
    assert [(model.id, model.object) for model in models] == [("other", "model"), ("tiny", "model")]
    body = tiny_server.get("/v1/models").json()
    assert body["object"] == "list"
    assert {model["id"]: model["chatTemplate"] for model in body["data"]} == {"tiny": "model", "other": "fallback"}


def test_model_is_shown_by_id_and_file_name(tiny_server: RunningServer) -> None:
    assert tiny_server.openai().models.retrieve("tiny").id == "tiny"
    assert tiny_server.get("/v1/models/tiny.F32.gguf").json()["id"] == "tiny"


def test_completion_counts_its_tokens(tiny_server: RunningServer) -> None:
    answer = tiny_server.openai().completions.create(model="tiny", prompt="hello", temperature=0, max_tokens=7)
    assert (answer.object, answer.model) == ("text_completion", "tiny")
    assert len(answer.choices[0].text) == 7
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 7, 12)


def test_completion_streams_the_same_text(tiny_server: RunningServer) -> None:
    whole = greedy(tiny_server, "stream me")
    chunks = list(
        tiny_server.openai().completions.create(model="tiny", prompt="stream me", temperature=0, max_tokens=24, stream=True)
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole
    assert len(chunks) > 12
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]
    assert len({chunk.id for chunk in chunks}) == 1


def test_completion_stops_at_a_stop_string(tiny_server: RunningServer) -> None:
    whole = greedy(tiny_server, "stop here")
    stop = whole[10:13]
    answer = tiny_server.openai().completions.create(
        model="tiny", prompt="stop here", temperature=0, max_tokens=24, stop=[stop]
    )
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_completion_takes_several_prompts_tokens_and_n(tiny_server: RunningServer) -> None:
    client = tiny_server.openai()
    answer = client.completions.create(model="tiny", prompt=["ab", "cd"], n=2, temperature=0, max_tokens=8)
    texts = [choice.text for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert texts == [greedy(tiny_server, prompt, max_tokens=8) for prompt in ("ab", "ab", "cd", "cd")]
    tokens = client.completions.create(model="tiny", prompt=[ord("a"), ord("b")], temperature=0, max_tokens=8)
    assert tokens.choices[0].text == texts[0]


def test_completion_draws_the_same_with_the_same_seed(tiny_server: RunningServer) -> None:
    def draw(seed: int) -> str:
        answer = tiny_server.openai().completions.create(
            model="tiny", prompt="dice", temperature=2, seed=seed, max_tokens=30, extra_body={"top_k": 0, "min_p": 0}
        )
        return answer.choices[0].text

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_chat_renders_the_models_template(tiny_server: RunningServer) -> None:
    client = tiny_server.openai()
    answer = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "Hi"}], temperature=0, max_completion_tokens=12
    )
    rendered = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == greedy(tiny_server, rendered, max_tokens=12)


def test_chat_falls_back_to_a_transcript(tiny_server: RunningServer) -> None:
    answer = tiny_server.openai().chat.completions.create(
        model="other", messages=[{"role": "user", "content": "Hi"}], temperature=0, max_tokens=12
    )
    assert answer.choices[0].message.content == greedy(tiny_server, "User: Hi\nAssistant:", "other", 12)


def test_chat_streams_role_text_reason_and_usage_in_that_order(tiny_server: RunningServer) -> None:
    chunks = list(
        tiny_server.openai().chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "Hi"}],
            temperature=0,
            max_tokens=5,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_usage_tells_how_much_of_a_prompt_was_not_computed_again(tiny_server: RunningServer) -> None:
    prompt = "A sentence that no other test has begun with, and that is long enough to be kept: "

    def cached(ending: str) -> int:
        usage = tiny_server.openai().completions.create(model="tiny", prompt=prompt + ending, max_tokens=3).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        return usage.prompt_tokens_details.cached_tokens or 0

    assert cached("one") == 0
    assert cached("two") == len(prompt)


def test_stream_has_no_usage_chunk_unless_asked(tiny_server: RunningServer) -> None:
    body = {"model": "tiny", "prompt": "a", "max_tokens": 2, "stream": True}
    with httpx.stream("POST", f"{tiny_server.url}/v1/completions", json=body, timeout=30) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all("usage" not in json.loads(line.removeprefix("data: ")) for line in lines[:-1])


def test_sixteen_streams_at_once_each_get_what_they_get_alone(tiny_server: RunningServer) -> None:
    prompts = [f"{number}: tell me more " * (1 + number % 5) for number in range(16)]
    alone = [greedy(tiny_server, prompt, max_tokens=64) for prompt in prompts]
    start = threading.Barrier(16)

    def stream(prompt: str) -> str:
        client = tiny_server.openai()
        start.wait(30)
        chunks = client.completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=64, stream=True)
        return "".join(chunk.choices[0].text for chunk in chunks)

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(stream, prompts))
    assert together == alone
    assert len(set(alone)) == 16


def test_request_without_a_model_goes_to_the_default(tiny_server: RunningServer) -> None:
    answer = tiny_server.post("/v1/completions", {"prompt": "a", "max_tokens": 1})
    assert answer.json()["model"] == "tiny"


def test_latest_tag_is_the_model_itself(tiny_server: RunningServer) -> None:
    assert (
        tiny_server.post("/v1/completions", {"model": "other:latest", "prompt": "a", "max_tokens": 1}).json()["model"]
        == "other"
    )


def test_unknown_model_is_404_and_never_another(tiny_server: RunningServer) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        tiny_server.openai().completions.create(model="gpt-4", prompt="a")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "other, tiny" in caught.value.message
    with pytest.raises(openai.NotFoundError):
        tiny_server.openai().models.retrieve("gpt-4")


def test_context_overflow_is_400_before_the_stream_starts(tiny_server: RunningServer) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        tiny_server.openai().completions.create(model="tiny", prompt="x" * 2048, stream=True)
    assert caught.value.code == "context_length_exceeded"
    assert "2048" in caught.value.message


def test_prompt_that_nearly_fills_the_context_gets_what_is_left(tiny_server: RunningServer) -> None:
    answer = tiny_server.openai().completions.create(model="tiny", prompt="x" * 2040, temperature=0, max_tokens=100)
    assert answer.usage is not None
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (8, "length")


def test_token_outside_of_the_vocabulary_is_400(tiny_server: RunningServer) -> None:
    with pytest.raises(openai.BadRequestError, match="outside of this model's vocabulary"):
        tiny_server.openai().completions.create(model="tiny", prompt=[999999])


def test_logit_bias_outside_of_the_vocabulary_is_400(tiny_server: RunningServer) -> None:
    with pytest.raises(openai.BadRequestError, match="logit_bias"):
        tiny_server.openai().completions.create(model="tiny", prompt="a", logit_bias={"999999": 1})


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_body_that_is_no_json_object_is_400(tiny_server: RunningServer, body: bytes) -> None:
    answer = httpx.post(f"{tiny_server.url}/v1/completions", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


def test_body_that_is_too_large_is_413(tiny_server: RunningServer) -> None:
    answer = httpx.post(f"{tiny_server.url}/v1/completions", content=b" " * (33 * 1024 * 1024), timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v2/nothing", 404), ("GET", "/v1/completions", 405)])
def test_wrong_urls_have_openais_error_shape(tiny_server: RunningServer, method: str, path: str, status: int) -> None:
    answer = httpx.request(method, tiny_server.url + path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_disconnect_ends_the_generation(tiny_server: RunningServer) -> None:
    """More abandoned long requests than there are slots would keep the last one waiting for long."""
    for _ in range(40):
        body = {"model": "other", "prompt": "a", "max_tokens": 2000, "temperature": 0, "stream": True}
        with httpx.stream("POST", f"{tiny_server.url}/v1/completions", json=body, timeout=30) as answer:
            next(answer.iter_lines())
    greedy(tiny_server, "still there", "other")
    served = [line for line in tiny_server.log().splitlines() if "other: 1 prompt and 2000 new tokens" in line]
    assert served == []


@pytest.mark.parametrize("model", ["tiny", "other"])
def test_long_run_of_one_character_is_400_and_harms_nobody(tiny_server: RunningServer, model: str) -> None:
    for length in (60_000, 1_000_000):
        answer = tiny_server.post("/v1/completions", {"model": model, "prompt": "!" * length})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert tiny_server.get("/readyz").json()["models"][model]["restarts"] == 0


def test_prompt_counts_once_for_several_choices(tiny_server: RunningServer) -> None:
    usage = tiny_server.openai().completions.create(model="tiny", prompt=["abcd", "ef"], n=3, max_tokens=2).usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (6, 12)


def test_half_a_surrogate_pair_in_a_model_name_is_404(tiny_server: RunningServer) -> None:
    answer = httpx.post(f"{tiny_server.url}/v1/completions", content=b'{"model": "\\ud800", "prompt": "a"}')
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("token", ["²", "1" * 5000])
def test_logit_bias_of_odd_digits_is_400(tiny_server: RunningServer, token: str) -> None:
    answer = tiny_server.post("/v1/completions", {"model": "tiny", "prompt": "a", "logit_bias": {token: 1}})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "logit_bias")


def test_wrong_method_says_which_is_allowed(tiny_server: RunningServer) -> None:
    assert tiny_server.get("/v1/completions").headers["allow"] == "POST"


def test_models_with_a_slash_behind_is_the_list(tiny_server: RunningServer) -> None:
    assert tiny_server.get("/v1/models/").json()["object"] == "list"
