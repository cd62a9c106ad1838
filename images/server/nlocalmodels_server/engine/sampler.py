"""How llama.cpp chooses a sequence's next token."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

import numpy as np

from nlocalmodels_server.engine.candidates import likeliest
from nlocalmodels_server.engine.llama import lib
from nlocalmodels_server.engine.sampling import SamplingParams

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PENALTY_WINDOW_TOKENS = 64
# llama_token_data of llama.h.
_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Sampler:
    """A chain in C. Cheap filters come first, so that nothing sorts the whole vocabulary."""

    def __init__(self, num_vocab: int, params: SamplingParams) -> None:
        chain_params = lib.llama_sampler_chain_default_params()
        chain_params.no_perf = True
        self.handle = lib.llama_sampler_chain_init(chain_params)
        # How many of the likeliest tokens the chain looks at, besides those with a bias. 0: at all, since it may move any.
        self.num_candidates = 0
        self._biased = np.unique(np.array([token for token, _ in params.logit_bias], dtype=np.intp))
        if not params.has_penalties and (params.is_greedy or params.top_k > 0):
            # A bias may push away as many of the likeliest.
            self.num_candidates = (1 if params.is_greedy else params.top_k) + len(self._biased)
        parts = []
        if params.logit_bias:
            biases = (lib.llama_logit_bias * len(params.logit_bias))()
            for index, (token, bias) in enumerate(params.logit_bias):
                biases[index].token, biases[index].bias = token, bias
            parts.append(lib.llama_sampler_init_logit_bias(num_vocab, len(params.logit_bias), biases))
        if params.has_penalties:
            parts.append(
                lib.llama_sampler_init_penalties(
                    num_vocab,
                    _PENALTY_WINDOW_TOKENS,
                    params.repeat_penalty,
                    params.frequency_penalty,
                    params.presence_penalty,
                )
            )
        if params.is_greedy:
            parts.append(lib.llama_sampler_init_greedy())
        else:
            if params.top_k > 0:
                parts.append(lib.llama_sampler_init_top_k(params.top_k))
            if params.top_p < 1.0:
                parts.append(lib.llama_sampler_init_top_p(params.top_p, 1))
            if params.min_p > 0.0:
                parts.append(lib.llama_sampler_init_min_p(params.min_p, 1))
            parts.append(lib.llama_sampler_init_temp(params.temperature))
            seed = int.from_bytes(os.urandom(4), "little") if params.seed is None else params.seed & 0xFFFFFFFF
            # The highest value means "draw one" to llama.cpp.
            parts.append(lib.llama_sampler_init_dist(min(seed, 0xFFFFFFFE)))
        for part in parts:
            lib.llama_sampler_chain_add(self.handle, part)

    def choose(self, logits: NDArray[np.float32]) -> int | None:
        """Chooses a token as the chain does, without handing it all others: it would copy and scan them.

        Returns:
            None if it has to be the long way.
        """
        if self.num_candidates == 1:
            return int(logits.argmax())
        tokens = likeliest(logits, self.num_candidates)
        if tokens is None:
            return None
        if len(self._biased):
            tokens = np.union1d(tokens, self._biased)
        data = np.zeros(len(tokens), dtype=_TOKEN_DATA)
        data["id"] = tokens
        data["logit"] = logits[tokens]
        pointer = data.ctypes.data_as(ctypes.POINTER(lib.llama_token_data))
        array = lib.llama_token_data_array(data=pointer, size=len(tokens), selected=-1, sorted=False)
        lib.llama_sampler_apply(self.handle, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        lib.llama_sampler_accept(self.handle, token)
        return token

    def close(self) -> None:
        lib.llama_sampler_free(self.handle)
