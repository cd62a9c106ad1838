"""From token bytes to text that may be sent: whole characters, and nothing that could be the start of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Turns the bytes of one sequence's tokens into text, in time proportional to what is new."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.is_stopped = False

    def push(self, piece: bytes) -> str:
        """Takes a token's bytes and returns the text that is certain now. Sets `is_stopped` at a stop string."""
        return self._release(self._decoder.decode(piece))

    def finish(self) -> str:
        """Returns what was held back, for a sequence that ends otherwise than by a stop string."""
        text = self._release(self._decoder.decode(b"", final=True))
        if self.is_stopped:
            return text
        held, self._held = self._held, ""
        return text + held

    def _release(self, text: str) -> str:
        text = self._held + text
        if not self._stops:
            self._held = ""
            return text
        found = [position for stop in self._stops if (position := text.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            self._held = ""
            return text[: min(found)]
        num_held = max(held_back(text, stop) for stop in self._stops)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]


def held_back(text: str, stop: str) -> int:
    """Returns the length of the longest end of `text` that is a proper start of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
