from __future__ import annotations

from pathlib import Path

import pytest

from nlocalmodels_server.engine import llama
from nlocalmodels_server.engine.loop import Engine, Event
from nlocalmodels_server.engine.sampling import SamplingParams
from nlocalmodels_server.engine.scheduler import Limits, Scheduler, Work
from nlocalmodels_server.engine.sequence import Sequence
from nlocalmodels_server.engine.text import TextStream
from support.gguf_files import write_llama

GREEDY = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
def capture() -> llama.LogCapture:
    return llama.start_backend()


@pytest.fixture(scope="module")
def model(capture: llama.LogCapture, tmp_path_factory: pytest.TempPathFactory) -> llama.Model:
    return llama.Model(write_llama(tmp_path_factory.mktemp("model") / "m.gguf", seed=5), capture)


def new_context(model: llama.Model, capture: llama.LogCapture, num_cells: int = 4096, num_slots: int = 16) -> llama.Context:
    return model.new_context(llama.ContextParams(num_cells, num_slots, num_batch_tokens=128, num_threads=2), capture)


def greedy_alone(model: llama.Model, capture: llama.LogCapture, prompt: str, num_tokens: int) -> list[int]:
    """Decodes one token at a time in a fresh context: the plainest way there is."""
    context = new_context(model, capture, num_slots=1)
    sampler = model.sampler(GREEDY)
    sequence = Sequence(0, model.tokenize(prompt, add_special=True), num_tokens, GREEDY, TextStream([]))
    sequence.slot = 0
    while sequence.num_new_tokens < num_tokens:
        work = Work(sequence, 1)
        rows = context.decode([work])
        sequence.num_computed += 1
        if rows:
            sequence.tokens.append(context.sample(sampler, rows[0]))
    return sequence.tokens[sequence.num_prompt_tokens :]


def run_engine(
    model: llama.Model, capture: llama.LogCapture, prompts: list[str], num_tokens: int, limits: Limits
) -> dict[int, str]:
    """Runs all prompts together and returns their texts."""
    context = new_context(model, capture, limits.num_cells, limits.num_slots)
    engine = Engine(model, context, Scheduler(limits), lambda _: None)
    texts = dict.fromkeys(range(len(prompts)), "")
    for number, prompt in enumerate(prompts):
        tokens = model.tokenize(prompt, add_special=True)
        engine.submit(Sequence(number, tokens, num_tokens, GREEDY, TextStream([])))
    engine._take_in(wait=True)
    finished = 0
    while finished < len(prompts):
        for event in engine.step():
            assert event.error is None
            texts[event.request_id] += event.text
            finished += event.finish_reason is not None
    return texts


@pytest.mark.parametrize("num_cells", [4096, 512], ids=["roomy", "with-preemption"])
def test_engine_gives_each_sequence_what_it_gets_alone(model: llama.Model, capture: llama.LogCapture, num_cells: int) -> None:
    prompts = [f"{number} " + "once upon a time " * (number % 7) for number in range(16)]
    limits = Limits(num_slots=16, num_cells=num_cells, num_batch_tokens=128, num_prefill_tokens=32)
    texts = run_engine(model, capture, prompts, 48, limits)
    for number, prompt in enumerate(prompts):
        alone = b"".join(model.piece(token) for token in greedy_alone(model, capture, prompt, 48))
        assert texts[number] == alone.decode()
    assert len(set(texts.values())) == len(prompts)


def test_tokenize_and_piece_round_trip(model: llama.Model) -> None:
    text = "Grüße, 世界! 🙂"
    tokens = model.tokenize(text, add_special=False)
    assert b"".join(model.piece(token) for token in tokens).decode() == text


def test_tokenize_of_a_control_token_has_no_text(model: llama.Model) -> None:
    (token,) = model.tokenize("<|im_end|>", add_special=False)
    assert model.piece(token) == b""
    assert model.is_end(model.tokenize("<|endoftext|>", add_special=False)[0])


def test_model_tells_its_cache_bytes_and_context(model: llama.Model) -> None:
    assert model.trained_context_tokens == 2048
    # 2 (K and V) x 2 layers x 4 heads x 16 x 4 bytes, since it is an F32 model
    assert model.kv_bytes_per_token() == 1024


def test_model_says_why_a_truncated_file_does_not_load(capture: llama.LogCapture, tmp_path: Path) -> None:
    whole = write_llama(tmp_path / "whole.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(llama.LoadError, match=r"not within the file bounds"):
        llama.Model(cut, capture)


def test_sampler_draws_the_same_with_the_same_seed(model: llama.Model, capture: llama.LogCapture) -> None:
    def draw(seed: int) -> list[int]:
        context = new_context(model, capture, num_slots=1)
        params = SamplingParams(temperature=5.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed)
        sampler = model.sampler(params)
        sequence = Sequence(0, model.tokenize("seed", add_special=True), 30, params, TextStream([]))
        sequence.slot = 0
        while sequence.num_new_tokens < 30:
            rows = context.decode([Work(sequence, sequence.num_uncomputed)])
            assert rows is not None
            sequence.num_computed = len(sequence.tokens)
            sequence.tokens.append(context.sample(sampler, rows[0]))
        return sequence.tokens

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_sampler_obeys_logit_bias(model: llama.Model, capture: llama.LogCapture) -> None:
    context = new_context(model, capture, num_slots=1)
    wanted = model.tokenize("z", add_special=False)[0]
    params = SamplingParams(temperature=0, logit_bias=((wanted, 100.0),))
    sequence = Sequence(0, model.tokenize("bias", add_special=True), 1, params, TextStream([]))
    sequence.slot = 0
    rows = context.decode([Work(sequence, sequence.num_uncomputed)])
    assert rows is not None
    assert context.sample(model.sampler(params), rows[0]) == wanted


def test_engine_cancels_and_frees_the_slot(model: llama.Model, capture: llama.LogCapture) -> None:
    limits = Limits(num_slots=1, num_cells=512, num_batch_tokens=128, num_prefill_tokens=32)
    events: list[Event] = []
    engine = Engine(model, new_context(model, capture, 512, 1), Scheduler(limits), events.extend)
    for number in (1, 2):
        engine.submit(Sequence(number, model.tokenize("go on", add_special=True), 5, GREEDY, TextStream([])))
    engine.cancel(1)
    engine._take_in(wait=True)
    events = []
    while not any(event.finish_reason for event in events):
        events += engine.step()
    assert {event.request_id for event in events} == {2}
