"""How fast a process has computed lately. Pure; the caller says how much time has passed."""

from __future__ import annotations

_HALF_LIFE_SECONDS = 60.0
# Of a request that says nothing of its length, while none has finished yet.
_ASSUMED_NEW_TOKENS = 256.0
_MAX_WEIGHT = 16.0


class Throughput:
    """Tokens per second of the time with requests, prompt and new tokens alike; the past fades with a half-life of a minute."""

    def __init__(self) -> None:
        self._num_tokens = 0.0
        self._busy_seconds = 0.0
        self._num_finished = 0.0
        self._num_new_tokens = 0.0

    def count(self, num_tokens: int) -> None:
        """Notes tokens that were computed."""
        self._num_tokens += num_tokens

    def finish(self, num_new_tokens: int) -> None:
        """Notes how long an answer has become."""
        fading = 1.0 if self._num_finished < _MAX_WEIGHT else 1.0 - 1.0 / _MAX_WEIGHT
        self._num_finished = self._num_finished * fading + 1.0
        self._num_new_tokens = self._num_new_tokens * fading + num_new_tokens

    def pass_time(self, busy_seconds: float) -> None:
        """Notes time in which there was something to compute."""
        fading = 0.5 ** (busy_seconds / _HALF_LIFE_SECONDS)
        self._num_tokens *= fading
        self._busy_seconds = self._busy_seconds * fading + busy_seconds

    def expected_new_tokens(self, max_new_tokens: int | None) -> float:
        """Returns how long an answer will probably become: as the last ones were on average, within its bound."""
        if not self._num_finished:
            return _ASSUMED_NEW_TOKENS if max_new_tokens is None else max_new_tokens
        average = self._num_new_tokens / self._num_finished
        return average if max_new_tokens is None else min(average, max_new_tokens)

    def seconds_for(self, num_tokens: float) -> float | None:
        """Returns how long so many tokens take; None before anything was measured."""
        if not self._num_tokens or not self._busy_seconds:
            return None
        return num_tokens * self._busy_seconds / self._num_tokens
