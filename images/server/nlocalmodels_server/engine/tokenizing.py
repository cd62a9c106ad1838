"""Tokenizes what clients send, without the stack overflow that llama.cpp has in store for long runs of one character.

Its pre-tokenizers recurse once per character (std::regex): 30,000 exclamation marks end a process with the usual stack.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from nlocalmodels_server.engine.llama import Model

# No text has so many characters a token; it bounds the stack and the time before a prompt is known to be too long.
_CHARACTERS_PER_TOKEN = 32
_MAX_CHARACTERS = 4 * 1024 * 1024
# Measured: 330 bytes.
_STACK_BYTES_PER_CHARACTER = 1024
_STACK_BASE_BYTES = 8 * 1024 * 1024


class PromptTooLongError(Exception):
    """The text cannot fit the context; the text of the error says how long it is."""


class Tokenizing:
    """A thread whose stack suffices for the longest text that may fit the context. Only touched pages cost memory."""

    def __init__(self, model: Model, context_tokens: int) -> None:
        self._model = model
        self.max_characters = min(_MAX_CHARACTERS, context_tokens * _CHARACTERS_PER_TOKEN)
        self._executor = ThreadPoolExecutor(1, "tokenizing")
        before = threading.stack_size(_STACK_BASE_BYTES + self.max_characters * _STACK_BYTES_PER_CHARACTER)
        try:
            # The thread starts with its first task, and takes the size that is set then.
            self._executor.submit(int).result()
        finally:
            threading.stack_size(before)

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        """Returns the tokens.

        Raises:
            PromptTooLongError: more characters than the context's tokens can stand for.
        """
        if len(text) > self.max_characters:
            raise PromptTooLongError(f"{len(text)} characters")
        return self._executor.submit(self._model.tokenize, text, add_special).result()
