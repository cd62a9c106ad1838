from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nlocalmodels_server.engine import llama, prompt_lookup
from nlocalmodels_server.engine.context import Context, ContextParams
from nlocalmodels_server.engine.loop import Engine, Event
from nlocalmodels_server.engine.pacing import StepCosts
from nlocalmodels_server.engine.sampler import Sampler
from nlocalmodels_server.engine.sampling import SamplingParams
from nlocalmodels_server.engine.scheduler import Scheduler
from nlocalmodels_server.engine.sequence import Sequence
from nlocalmodels_server.engine.step import Copy, Limits, Work
from nlocalmodels_server.engine.text import TextStream
from support.gguf_files import write_llama

GREEDY = SamplingParams(temperature=0)


@pytest.fixture(scope="module")
def capture() -> llama.LogCapture:
    return llama.start_backend()


@pytest.fixture(scope="module")
def model(capture: llama.LogCapture, tmp_path_factory: pytest.TempPathFactory) -> llama.Model:
    return llama.Model(write_llama(tmp_path_factory.mktemp("model") / "m.gguf", seed=5), capture)


def new_context(model: llama.Model, capture: llama.LogCapture, num_cells: int = 4096, num_slots: int = 16) -> Context:
    kv_type, flash_attention = ("f32", False) if model.is_full_precision() else (None, None)
    return Context(model, ContextParams(num_cells, num_slots, 128, 2, None, kv_type, flash_attention), capture)


def greedy_alone(model: llama.Model, capture: llama.LogCapture, prompt: str, num_tokens: int) -> list[int]:
    """Decodes one token at a time in a fresh context: the plainest way there is."""
    context = new_context(model, capture, num_slots=1)
    sampler = Sampler(model.num_vocab, GREEDY)
    sequence = Sequence(0, model.tokenize(prompt, add_special=True), num_tokens, GREEDY, TextStream([]))
    sequence.slot = 0
    while sequence.num_new_tokens < num_tokens:
        work = Work(sequence, 1)
        rows = context.decode([work])
        sequence.num_computed += 1
        if rows:
            sequence.tokens.append(context.sample(sampler, rows[0]))
    return sequence.tokens[sequence.num_prompt_tokens :]


class Run:
    """An engine and what came of its sequences. `greedy` sends a prompt, `finish` computes until all are done."""

    def __init__(self, model: llama.Model, capture: llama.LogCapture, limits: Limits) -> None:
        context = new_context(model, capture, limits.num_cells, limits.num_slots + limits.num_kept)
        costs = StepCosts()
        self._model = model
        self.engine = Engine(model, context, Scheduler(limits, costs, context.can_share), costs, self._take)
        self.texts: dict[int, str] = {}
        self.ends: dict[int, Event] = {}

    def send(self, prompt: str, num_tokens: int, sampling: SamplingParams = GREEDY) -> int:
        number = len(self.texts)
        self.texts[number] = ""
        self.engine.submit(
            Sequence(number, self._model.tokenize(prompt, add_special=True), num_tokens, sampling, TextStream([]))
        )
        return number

    def step(self) -> None:
        self.engine._take_in(wait=False)
        self._take(self.engine.step())

    def finish(self) -> None:
        while len(self.ends) < len(self.texts):
            self.step()

    def _take(self, events: list[Event]) -> None:
        for event in events:
            assert event.error is None
            self.texts[event.request_id] += event.text
            if event.finish_reason is not None:
                self.ends[event.request_id] = event


def limits_of(num_cells: int = 4096, num_kept: int = 16) -> Limits:
    return Limits(num_slots=16, num_cells=num_cells, num_batch_tokens=128, num_output_rows=16 + num_kept, num_kept=num_kept)


def text_alone(model: llama.Model, capture: llama.LogCapture, prompt: str, num_tokens: int) -> str:
    return b"".join(model.piece(token) for token in greedy_alone(model, capture, prompt, num_tokens)).decode()


@pytest.mark.parametrize("num_cells", [4096, 512], ids=["roomy", "with-preemption"])
def test_engine_gives_each_sequence_what_it_gets_alone(model: llama.Model, capture: llama.LogCapture, num_cells: int) -> None:
    prompts = [f"{number} " + "once upon a time " * (number % 7) for number in range(16)]
    run = Run(model, capture, limits_of(num_cells))
    for prompt in prompts:
        run.send(prompt, 48)
    run.finish()
    assert list(run.texts.values()) == [text_alone(model, capture, prompt, 48) for prompt in prompts]
    assert len(set(run.texts.values())) == len(prompts)


def test_engine_gives_the_same_after_reuse_of_prefixes(model: llama.Model, capture: llama.LogCapture) -> None:
    """Fifty prompts of all lengths that share beginnings with ones that run and ones that have ended."""
    rng = random.Random(3)
    stories = ["".join(rng.choice("abcdefgh ") for _ in range(300)) for _ in range(3)]
    prompts = [rng.choice(stories)[: rng.randint(10, 300)] + f"{number}" * rng.randint(0, 3) for number in range(50)]
    run = Run(model, capture, limits_of(2048))
    for prompt in prompts:
        run.send(prompt, rng.randint(1, 40))
        for _ in range(rng.randint(0, 6)):
            run.step()
    run.finish()
    for number, prompt in enumerate(prompts):
        assert run.texts[number] == text_alone(model, capture, prompt, run.ends[number].num_new_tokens), prompt
    assert sum(end.num_reused_tokens for end in run.ends.values()) > 2000


def test_engine_gives_the_same_with_guesses(
    model: llama.Model, capture: llama.LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guesses that pay always, so that right and wrong ones are tried all the time, alone and in a crowd."""
    monkeypatch.setattr(StepCosts, "seconds", lambda *_: 1.0)
    monkeypatch.setattr(prompt_lookup, "_MIN_RATE", 0.0)
    prompts = [f"{number} " + "to be or not to be " * 8 for number in range(8)]
    for crowd in ([0], range(8)):
        run = Run(model, capture, limits_of())
        for number in crowd:
            run.send(prompts[number], 200)
        run.finish()
        for place, number in enumerate(crowd):
            assert run.texts[place] == text_alone(model, capture, prompts[number], 200)


def test_engine_draws_the_same_with_guesses(
    model: llama.Model, capture: llama.LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a seed, a text is a function of the prompt, also where tokens are drawn and penalties count what was said."""
    params = SamplingParams(temperature=0.7, repeat_penalty=1.1, seed=11)

    def draw(min_rate: float) -> str:
        monkeypatch.setattr(prompt_lookup, "_MIN_RATE", min_rate)
        run = Run(model, capture, limits_of())
        run.send("row row row your boat " * 6, 150, params)
        run.finish()
        return run.texts[0]

    monkeypatch.setattr(StepCosts, "seconds", lambda *_: 1.0)
    assert draw(0.0) == draw(2.0)


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
        sampler = Sampler(model.num_vocab, params)
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
    assert context.sample(Sampler(model.num_vocab, params), rows[0]) == wanted


def test_engine_cancels_and_frees_the_slot(model: llama.Model, capture: llama.LogCapture) -> None:
    limits = Limits(num_slots=1, num_cells=512, num_batch_tokens=128, num_output_rows=1)
    events: list[Event] = []
    costs = StepCosts()
    engine = Engine(model, new_context(model, capture, 512, 1), Scheduler(limits, costs), costs, events.extend)
    for number in (1, 2):
        engine.submit(Sequence(number, model.tokenize("go on", add_special=True), 5, GREEDY, TextStream([])))
    engine.cancel(1)
    engine._take_in(wait=True)
    events = []
    while not any(event.finish_reason for event in events):
        events += engine.step()
    assert {event.request_id for event in events} == {2}


def test_sampler_chooses_as_the_whole_chain_does(capture: llama.LogCapture, embedded_model_path: Path) -> None:
    """With a vocabulary of 262,144 it looks at few tokens only; the draws are those over all of it."""
    model = llama.Model(embedded_model_path, capture)
    context = new_context(model, capture, num_cells=512, num_slots=1)
    sequence = Sequence(0, model.tokenize("The weather in spring is", add_special=True), 40, GREEDY, TextStream([]))
    sequence.slot = 0
    bias = ((sequence.tokens[-1], 25.0), (7, -100.0), (107, -100.0), (108, -3.0))
    cases = [
        GREEDY,
        SamplingParams(temperature=0, logit_bias=bias),
        *(SamplingParams(temperature=1.5, top_k=top_k, seed=top_k) for top_k in (1, 2, 40, 100)),
        SamplingParams(temperature=1.5, seed=5, logit_bias=bias),
    ]
    short, long = ([Sampler(model.num_vocab, params) for params in cases] for _ in range(2))
    for sampler in long:
        sampler.num_candidates = 0
    for _ in range(30):
        rows = context.decode([Work(sequence, sequence.num_uncomputed)])
        assert rows is not None
        sequence.num_computed = len(sequence.tokens)
        chosen = [context.sample(sampler, rows[0]) for sampler in short]
        assert chosen == [context.sample(sampler, rows[0]) for sampler in long]
        sequence.tokens.append(chosen[4])


def test_llama_cpp_may_log_after_a_capture_is_forgotten(tmp_path: Path) -> None:
    """It calls back whenever it has something to say, also from a process that has long loaded its model."""
    code = (
        "import gc, pathlib; from nlocalmodels_server.engine import llama\n"
        f"def load(): return llama.Model(pathlib.Path({str(write_llama(tmp_path / 'm.gguf'))!r}), llama.start_backend())\n"
        "model = load(); gc.collect(); junk = [bytearray(64) for _ in range(10000)]\n"
        f"load_again = llama.lib.llama_model_load_from_file({str(tmp_path / 'gone.gguf').encode()!r},"
        " llama.lib.llama_model_default_params()); print('alive', load_again)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (0, "alive None\n"), run.stderr


@pytest.mark.real_model
def test_real_model_stays_within_the_noise_of_batch_shape(capture: llama.LogCapture, embedded_model_path: Path) -> None:
    """Under teacher forcing: a prefix from another slot, chunks, neighbours and guessed rows, against one token at a time.

    The shape of a batch alone moves this quantized model's logits by up to 1.7, most of them by far less.
    """
    model = llama.Model(embedded_model_path, capture)
    context = new_context(model, capture, num_cells=2048, num_slots=20)
    text = "The harbour was quiet that morning. Two boats came in with the tide, and nobody on the quay looked up. " * 2
    tokens = model.tokenize(text, add_special=True)[:48]

    def sequence(slot: int) -> Sequence:
        made = Sequence(slot, list(tokens), 1, GREEDY, TextStream([]))
        made.slot = slot
        return made

    def logits(row: int) -> np.ndarray:
        pointer = llama.lib.llama_get_logits_ith(context._handle, row)
        return np.ctypeslib.as_array(pointer, (model.num_vocab,)).copy()

    plain = sequence(0)
    expected = []
    for position in range(len(tokens)):
        plain.tokens = tokens[: position + 1]
        rows = context.decode([Work(plain, 1)])
        assert rows is not None
        expected.append(logits(rows[0]))
        plain.num_computed += 1
    neighbour, shared = sequence(2), sequence(1)
    context.move([Copy(0, 1, 20)])
    shared.num_computed = 20
    shared.tokens = tokens[:32]
    found = {}
    # Eleven prompt tokens beside a neighbour's, then guesses that are all right: each of their rows has logits.
    for num_tokens, draft in ((11, ()), (1, tuple(tokens[32:47]))):
        works = [Work(neighbour, 5), Work(shared, num_tokens, draft)]
        rows = context.decode(works)
        assert rows is not None
        neighbour.num_computed += 5
        shared.num_computed += num_tokens
        for place, row in enumerate(range(rows[0], rows[0] + 1 + len(draft)) if rows else ()):
            found[31 + place] = logits(row)
    differences = [np.abs(found[position] - expected[position]) for position in found]
    assert len(differences) == 16
    assert max(float(difference.max()) for difference in differences) < 2.0
    assert float(np.mean(differences)) < 0.2
    agreeing = sum(int(found[position].argmax() == expected[position].argmax()) for position in found)
    assert agreeing >= 14
