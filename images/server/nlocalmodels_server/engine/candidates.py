"""Which tokens can come next at all: the few likeliest of a vocabulary of hundreds of thousands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BLOCK_TOKENS = 256


def likeliest(logits: NDArray[np.float32], num_tokens: int) -> NDArray[np.intp] | None:
    """Returns the tokens with the `num_tokens` highest logits and a few more, in order of their number.

    The highest logits of blocks are found in one pass. At least as many tokens as blocks have a logit that reaches the n-th
    highest of these, and hardly more. Sorting the vocabulary, or copying it for a sorter, takes several times as long.

    Returns:
        None where this is no shortcut: the vocabulary is small, or the logits are no numbers.
    """
    num_blocks = len(logits) // _BLOCK_TOKENS
    if num_blocks < 2 * num_tokens:
        return None
    highest = logits[: num_blocks * _BLOCK_TOKENS].reshape(num_blocks, _BLOCK_TOKENS).max(axis=1)
    bound = np.partition(highest, num_blocks - num_tokens)[num_blocks - num_tokens]
    tokens = np.flatnonzero(logits >= bound)
    return tokens if num_tokens <= len(tokens) < num_blocks else None
