"""What a step costs, learnt from steps that were run: how many prompt tokens fit into one, and whether a guess pays."""

from __future__ import annotations

from bisect import bisect_left

# Between these, the time of a step without prompts is taken as linear in its rows.
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# How much a new measurement counts. A machine is noisy, and a cache that fills makes steps slower by and by.
_WEIGHT = 0.25
_MAX_SCALE = 2.0
# Of a CPU: one row costs a pass over the weights, further ones their share of the arithmetic.
_PRIOR_SECONDS = tuple(0.030 + 0.003 * size for size in _SIZES)
_PRIOR_PROMPT_TOKEN_SECONDS = 0.003
_GRAIN_TOKENS = 16
_TILE_GRAINS = 4


class StepCosts:
    """A step's seconds: those of its rows that yield a token, and so much for each prompt token beside them.

    The two differ, since only the former are multiplied with the whole vocabulary. Pure: the loop measures, this remembers.
    """

    def __init__(self) -> None:
        self._seconds = list(_PRIOR_SECONDS)
        self._is_measured = [False] * len(_SIZES)
        self._prompt_token_seconds = _PRIOR_PROMPT_TOKEN_SECONDS
        self._has_prompts_measured = False

    def record(self, num_yielding: int, num_prompt_tokens: int, seconds: float) -> None:
        """Takes in a step that was run, of rows that yield a token and rows that only fill the cache."""
        if num_prompt_tokens:
            self._record_prompts(num_prompt_tokens, seconds - (self.seconds(num_yielding) if num_yielding else 0.0))
        else:
            self._record_yielding(num_yielding, seconds)

    def seconds(self, num_rows: int) -> float:
        """Returns what a step of so many rows that yield a token is expected to take."""
        above = min(max(1, bisect_left(_SIZES, num_rows)), len(_SIZES) - 1)
        low, high = _SIZES[above - 1], _SIZES[above]
        share = (num_rows - low) / (high - low)
        return self._seconds[above - 1] + share * (self._seconds[above] - self._seconds[above - 1])

    def chunk_tokens(self, num_decoding: int, max_seconds: float) -> int:
        """Returns how many prompt tokens fit into a step beside the decoding sequences, in grains of 16, one at least.

        From about two on, whole tiles of 64 rows: a part of one takes llama.cpp's attention as long as a whole.
        """
        left_seconds = max_seconds - (self.seconds(num_decoding) if num_decoding else 0.0)
        grains = max(1, round(left_seconds / self._prompt_token_seconds / _GRAIN_TOKENS))
        # One grain too few for the next tile is as good as enough.
        tiles = (grains + 1) // _TILE_GRAINS
        return (tiles * _TILE_GRAINS if tiles > 1 else grains) * _GRAIN_TOKENS

    def _record_prompts(self, num_tokens: int, seconds: float) -> None:
        # A step of a few tokens is all overhead, and what a chunk costs cannot be told from it.
        if num_tokens < _GRAIN_TOKENS and self._has_prompts_measured:
            return
        old = self._prompt_token_seconds
        new = max(seconds / num_tokens, old / 8)
        if not self._has_prompts_measured:
            self._prompt_token_seconds = new
            self._has_prompts_measured = True
        else:
            # One hiccup of the machine is no new price.
            self._prompt_token_seconds += _WEIGHT * (min(new, _MAX_SCALE * old) - old)

    def _record_yielding(self, num_rows: int, seconds: float) -> None:
        """Moves the sizes on both sides of a measurement; those never measured move along."""
        scale = seconds / self.seconds(num_rows)
        above = min(bisect_left(_SIZES, num_rows), len(_SIZES) - 1)
        near = {above} if _SIZES[above] <= num_rows else {above - 1, above}
        is_first = not any(self._is_measured[index] for index in near)
        change = scale - 1 if is_first else _WEIGHT * (min(scale, _MAX_SCALE) - 1)
        for index in range(len(_SIZES)):
            if index in near or not self._is_measured[index]:
                self._seconds[index] *= 1 + change
        for index in near:
            self._is_measured[index] = True
        self._keep_rising(near)

    def _keep_rising(self, near: set[int]) -> None:
        """More rows never take less time; a measurement that says so is noise of the one or change of the other."""
        for index in range(max(near) + 1, len(_SIZES)):
            self._seconds[index] = max(self._seconds[index], self._seconds[index - 1])
        for index in range(min(near) - 1, -1, -1):
            self._seconds[index] = min(self._seconds[index], self._seconds[index + 1])
