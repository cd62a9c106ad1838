"""What is measured: each scenario asks one server and returns its figures by name."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from client import BenchError, Endpoint, Request, Stream, send
from machine import process_cpu_seconds
from servers import Server

Figures = dict[str, float]

STREAMS = (1, 4, 8, 16, 32)
OVERHEAD_STREAMS = 16

# Neither server may end a stream early: gemma's <eos> and <end_of_turn>.
_NO_END = {"1": -100, "106": -100}
# Said in full, so that no default of a server decides.
_SAMPLING = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "logit_bias": _NO_END}

# fmt: off
_WORDS = (
    "river", "stone", "window", "garden", "letter", "winter", "engine", "silver", "market", "teacher", "bridge", "paper",
    "morning", "island", "forest", "captain", "number", "season", "kitchen", "story", "harbour", "village", "doctor",
    "summer", "mountain", "pocket", "mirror", "station", "ticket", "orange", "blanket", "shadow", "candle", "thunder",
    "basket", "journey", "valley", "corner", "library", "music", "weather", "picture", "branch", "signal", "copper",
    "feather",
)
# fmt: on

# gemma-3-270m, a base model, repeats it to the letter once the copy has begun.
PASSAGE_START = "The harbour master"
PASSAGE = (
    f"{PASSAGE_START} counted the boats that came in before noon: eleven trawlers, two ferries and a grey yacht with a "
    "torn sail. He wrote each name in a green book, beside the weight of the catch and the hour of its landing. When the "
    "rain began, he moved his table under the roof of the ice house and went on writing. By evening the book had forty-three "
    "new lines, and nobody but the gulls had disturbed him."
)
COPY_PROMPT = f"{PASSAGE}\n\nThe same text once more, word for word:\n\n{PASSAGE_START}"


@dataclass(frozen=True, slots=True)
class Scale:
    """How many tokens each scenario takes."""

    decode_tokens: int = 64
    prefix_words: int = 1000
    prefix_tokens: int = 64
    stall_words: int = 2000
    stall_tokens: int = 160
    copy_tokens: int = 80
    two_tokens: int = 32
    quota_tokens: int = 48


# More than are computed while eight others come and go.
_HOLDER_TOKENS = 2000

QUICK = Scale(decode_tokens=40, prefix_tokens=24, stall_tokens=80, copy_tokens=64, two_tokens=24, quota_tokens=24)


class NoOverlapError(BenchError):
    """Some stream ended before another began, so that there is no rate of all."""


async def warm_up(server: Server) -> None:
    """Pages weights in, and lets a server take the memory that it takes once."""
    for endpoint in server.endpoints:
        await _all(endpoint, [_body(words(random.Random(0), 200), 8)] * 2)


async def decode(server: Server, num_streams: int, num_tokens: int, seed: int) -> float:
    """Returns tokens per second of all streams together, while all of them run: prompts are apart."""
    (endpoint,) = server.endpoints
    return rate(await _all(endpoint, _short(num_streams, num_tokens, seed)))


async def overhead(server: Server, num_tokens: int, seed: int) -> float:
    """Returns processor milliseconds of the HTTP process for each token, its share of taking requests in included."""
    (endpoint,) = server.endpoints
    before = process_cpu_seconds(server.pid)
    streams = await _all(endpoint, _short(OVERHEAD_STREAMS, num_tokens, seed))
    return (process_cpu_seconds(server.pid) - before) * 1000.0 / sum(stream.num_tokens for stream in streams)


async def shared_prefix(server: Server, scale: Scale, seed: int) -> Figures:
    """Eight requests at once that share a long prefix and differ in their last words: first one that no cache has seen, then
    one that a stream holds which is busy."""
    (endpoint,) = server.endpoints
    chance = random.Random(f"prefix {seed}")

    async def eight(prefix: str) -> tuple[float, float]:
        bodies = [_body(f"{prefix} {words(chance, 6)}", scale.prefix_tokens) for _ in range(8)]
        streams = await _all(endpoint, bodies)
        seconds = max(stream.last_at for stream in streams) - min(stream.sent_at for stream in streams)
        ttft_seconds = median(stream.first_at - stream.sent_at for stream in streams)
        return ttft_seconds, sum(stream.num_tokens for stream in streams) / seconds

    unseen_ttft, unseen_rate = await eight(words(chance, scale.prefix_words))
    held = words(chance, scale.prefix_words)
    holder = await send(endpoint, _body(f"{held} {words(chance, 6)}", _HOLDER_TOKENS))
    await holder.events(4)
    held_ttft, held_rate = await eight(held)
    holder.drop()
    return {
        "prefix.ttft_seconds": held_ttft,
        "prefix.tokens_per_second": held_rate,
        "unseen.ttft_seconds": unseen_ttft,
        "unseen.tokens_per_second": unseen_rate,
    }


async def stall(server: Server, scale: Scale, seed: int) -> Figures:
    """Six streams run when a long prompt arrives."""
    (endpoint,) = server.endpoints
    requests = [await send(endpoint, body) for body in _short(6, scale.stall_tokens, seed)]
    await asyncio.gather(*(request.events(16) for request in requests))
    newcomer = await send(endpoint, _body(words(random.Random(f"stall {seed}"), scale.stall_words), 16))
    running = _whole(await _results(requests), scale.stall_tokens)
    (late,) = await _results([newcomer])
    arrived_at = late.sent_at
    if min(stream.last_at for stream in running) < arrived_at + 0.5:
        raise BenchError("stall: a stream was over when the prompt had just arrived; give the scenario more tokens.")
    gaps = [
        after - before
        for stream in running
        for before, after in zip(stream.event_times, stream.event_times[1:], strict=False)
        if after > arrived_at
    ]
    return {
        "stall.gap_seconds": max(gaps),
        "stall.total_seconds": max(stream.last_at for stream in [*running, late]) - arrived_at,
    }


async def copy(server: Server, scale: Scale, _seed: int) -> tuple[Figures, str]:
    """Has the model repeat a text at temperature 0, and returns the text too."""
    (endpoint,) = server.endpoints
    body = {"prompt": COPY_PROMPT, "temperature": 0, "max_tokens": scale.copy_tokens, "logit_bias": _NO_END}
    (stream,) = await _all(endpoint, [body])
    seconds = stream.last_at - stream.first_at
    return {"copy.tokens_per_second": (stream.num_tokens - 1) / seconds}, stream.text


async def two_models(endpoints: Sequence[Endpoint], num_tokens: int, seed: int) -> list[float]:
    """Returns each model's tokens per second while four streams of each run at the same time.

    Where one model is done before the other has begun, all tokens count over the whole time, in favour of such a server.
    """
    bodies = _short(4, num_tokens, seed)
    requests = [[await send(endpoint, body) for body in bodies] for endpoint in endpoints]
    streams = [_whole(await _results(of_one), num_tokens) for of_one in requests]
    everything = [stream for of_one in streams for stream in of_one]
    try:
        window = _window(everything)
    except NoOverlapError:
        window = min(stream.first_at for stream in everything), max(stream.last_at for stream in everything)
    return [_rate_within(of_one, window) for of_one in streams]


def rate(streams: Sequence[Stream]) -> float:
    """Returns tokens per second from when all streams have their first token until the first of them ends."""
    return _rate_within(streams, _window(streams))


def words(chance: random.Random, number: int) -> str:
    """Returns that many words, each about a token of gemma."""
    return " ".join(chance.choices(_WORDS, k=number))


def _window(streams: Sequence[Stream]) -> tuple[float, float]:
    start, end = max(stream.first_at for stream in streams), min(stream.last_at for stream in streams)
    if end - start < 0.05:
        raise NoOverlapError("the streams did not run at the same time; give the scenario more tokens.")
    return start, end


def _rate_within(streams: Sequence[Stream], window: tuple[float, float]) -> float:
    start, end = window
    return sum(stream.tokens_until(end) - stream.tokens_until(start) for stream in streams) / (end - start)


def _body(prompt: str, num_tokens: int, seed: int = 1) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": num_tokens, "seed": seed, **_SAMPLING}


def _short(number: int, num_tokens: int, seed: int) -> list[dict[str, Any]]:
    """Returns requests with short prompts that share nothing."""
    chance = random.Random(f"short {seed} {number}")
    return [_body(f"{words(chance, 10)}. Once upon a time", num_tokens, seed * 100 + index) for index in range(number)]


async def _all(endpoint: Endpoint, bodies: Sequence[dict[str, Any]]) -> list[Stream]:
    requests = [await send(endpoint, body) for body in bodies]
    return _whole(await _results(requests), bodies[0]["max_tokens"])


async def _results(requests: Sequence[Request]) -> list[Stream]:
    return list(await asyncio.gather(*(request.result() for request in requests)))


def _whole(streams: list[Stream], num_tokens: int) -> list[Stream]:
    for stream in streams:
        if stream.num_tokens != num_tokens:
            raise BenchError(
                f"a stream ended after {stream.num_tokens} of {num_tokens} tokens ({stream.finish_reason}), so that the "
                "servers cannot be compared; give this model's end tokens in scenarios.py."
            )
    return streams
