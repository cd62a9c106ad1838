"""What a step costs, learnt from steps that were run: how many prompt tokens fit into one, and whether a guess pays."""

from __future__ import annotations

from bisect import bisect_left

# Between these, a step's time is taken as linear in its rows.
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# How much a new measurement counts. A machine is noisy, and a cache that fills makes steps slower by and by.
_WEIGHT = 0.25
_MAX_SCALE = 2.0
# Of a CPU: one row costs a pass over the weights, further ones their share of the arithmetic.
_PRIOR_SECONDS = tuple(0.010 + 0.002 * size for size in _SIZES)
_GRAIN_TOKENS = 16


class StepCosts:
    """A step's seconds as a function of its rows. Pure: the loop measures, this remembers."""

    def __init__(self) -> None:
        self._seconds = list(_PRIOR_SECONDS)
        self._is_measured = [False] * len(_SIZES)

    def record(self, num_rows: int, seconds: float) -> None:
        """Takes in a step that was run. It moves the sizes on both sides of it; those never measured move along."""
        scale = seconds / self.seconds(num_rows)
        above = min(bisect_left(_SIZES, num_rows), len(_SIZES) - 1)
        near = {above} if _SIZES[above] <= num_rows else {above - 1, above}
        is_first = not any(self._is_measured[index] for index in near)
        # One hiccup of the machine is no new price.
        change = scale - 1 if is_first else _WEIGHT * (min(scale, _MAX_SCALE) - 1)
        for index in range(len(_SIZES)):
            if index in near or not self._is_measured[index]:
                self._seconds[index] *= 1 + change
        for index in near:
            self._is_measured[index] = True
        self._keep_rising(near)

    def seconds(self, num_rows: int) -> float:
        """Returns what a step of so many rows is expected to take."""
        above = min(max(1, bisect_left(_SIZES, num_rows)), len(_SIZES) - 1)
        low, high = _SIZES[above - 1], _SIZES[above]
        share = (num_rows - low) / (high - low)
        return self._seconds[above - 1] + share * (self._seconds[above] - self._seconds[above - 1])

    def chunk_tokens(self, num_decoding: int, max_seconds: float) -> int:
        """Returns how many prompt tokens fit into a step beside the decoding sequences, at least one grain of 16."""
        low, high = 1, _SIZES[-1] // _GRAIN_TOKENS
        while low < high:
            middle = (low + high + 1) // 2
            if self.seconds(num_decoding + middle * _GRAIN_TOKENS) <= max_seconds:
                low = middle
            else:
                high = middle - 1
        return low * _GRAIN_TOKENS

    def _keep_rising(self, near: set[int]) -> None:
        """More rows never take less time; a measurement that says so is noise of the one or change of the other."""
        for index in range(max(near) + 1, len(_SIZES)):
            self._seconds[index] = max(self._seconds[index], self._seconds[index - 1])
        for index in range(min(near) - 1, -1, -1):
            self._seconds[index] = min(self._seconds[index], self._seconds[index + 1])
