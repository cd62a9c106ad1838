"""One request inside the engine: its tokens and how far they are computed."""

from __future__ import annotations

from dataclasses import dataclass, field

from nlocalmodels_server.engine.prompt_lookup import PromptLookup
from nlocalmodels_server.engine.sampling import SamplingParams
from nlocalmodels_server.engine.text import TextStream


@dataclass(slots=True, eq=False)
class Sequence:
    """The state of one request.

    `tokens` are the prompt and what was generated. The first `num_computed` of them have their keys and values in the cache
    under `slot`; prefill, decode and recomputation after a preemption are all the same: computing the rest. `num_reused` of the
    prompt's tokens were there already when it was first given a slot, from another sequence.
    """

    request_id: int
    tokens: list[int]
    max_new_tokens: int
    sampling: SamplingParams
    text: TextStream
    num_prompt_tokens: int = field(init=False)
    num_computed: int = 0
    num_reused: int | None = None
    slot: int | None = None
    lookup: PromptLookup = field(default_factory=PromptLookup)

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.tokens)

    @property
    def num_uncomputed(self) -> int:
        return len(self.tokens) - self.num_computed

    @property
    def num_new_tokens(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def is_decoding(self) -> bool:
        """Whether a single token is left to compute, so that each step yields the next."""
        return self.num_uncomputed == 1
