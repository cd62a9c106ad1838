"""Guesses of the next tokens from what the text has said before (prompt lookup, draft-free speculative decoding)."""

from __future__ import annotations

from collections.abc import Callable

# Three tokens that were seen before are followed by the same ones often enough; two are not.
_NGRAM_TOKENS = 3
MAX_DRAFT_TOKENS = 16
# A first estimate of how often a guess is right, and how many guesses' weight it has. It is low: a text has to show that it
# repeats itself, which costs nothing, since each guess is compared with the token that came, tried or not.
_PRIOR_RATE = 0.2
_PRIOR_WEIGHT = 3.0
_DECAY = 0.9
# Below this no guess pays on any machine.
_MIN_RATE = 0.25


class PromptLookup:
    """The guesses of one sequence, and how good they have been."""

    def __init__(self) -> None:
        self._following: dict[tuple[int, ...], int] = {}
        self._num_indexed = _NGRAM_TOKENS
        self._right = _PRIOR_RATE * _PRIOR_WEIGHT
        self._tried = _PRIOR_WEIGHT
        self._expected: list[int] = []

    @property
    def rate(self) -> float:
        """How often a guess has been right lately, from 0 to 1."""
        return self._right / self._tried

    def guess(self, tokens: list[int], max_tokens: int) -> list[int]:
        """Returns up to `max_tokens` tokens that may follow, none if the last ones are new.

        Costs no more than what was added since the last call.
        """
        following = self._following
        for end in range(self._num_indexed, len(tokens)):
            following[tuple(tokens[end - _NGRAM_TOKENS : end])] = end
        self._num_indexed = max(self._num_indexed, len(tokens))
        position = following.get(tuple(tokens[-_NGRAM_TOKENS:]))
        if position is None or max_tokens <= 0:
            return []
        guess = tokens[position : position + max_tokens]
        # What runs into its own end repeats itself.
        period = len(tokens) - position
        while len(guess) < max_tokens:
            guess.append(guess[len(guess) - period])
        return guess

    def expect(self, guess: list[int]) -> None:
        """Remembers a guess, tried or not, for `compare`."""
        self._expected = guess

    def compare(self, new_tokens: list[int]) -> None:
        """Learns from the tokens that came how good the last guess was."""
        for guessed, token in zip(self._expected, new_tokens, strict=False):
            is_right = guessed == token
            self._right = self._right * _DECAY + is_right
            self._tried = self._tried * _DECAY + 1
            if not is_right:
                break
        self._expected = []


def best_length(
    rate: float, max_tokens: int, num_rows: int, num_expected: float, seconds: Callable[[int], float]
) -> tuple[int, float]:
    """Returns how many guessed tokens of one more sequence are worth computing in a step, and how many will be right.

    The step has `num_rows` rows without them and yields `num_expected` tokens. A guess counts only if all before it were right,
    so the n-th adds rate**n tokens, while each costs a row. What is compared is tokens per second of the whole step.
    """
    best, best_gain = 0, 0.0
    if rate < _MIN_RATE:
        return best, best_gain
    best_speed = num_expected / seconds(num_rows)
    gain = 0.0
    for length in range(1, max_tokens + 1):
        gain += rate**length
        speed = (num_expected + gain) / seconds(num_rows + length)
        if speed > best_speed:
            best, best_gain, best_speed = length, gain, speed
    return best, best_gain
