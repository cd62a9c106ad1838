"""Which tokens can come next at all: the few likeliest of a vocabulary of hundreds of thousands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_NUM_GROUPS = 1024


def likeliest(logits: NDArray[np.float32], num_tokens: int) -> NDArray[np.intp] | None:
    """Returns the tokens with the `num_tokens` highest logits and a few more, in order of their number.

    Tokens are dealt out to groups, and the highest logit of each is found in one pass. At least as many tokens as groups have a
    logit that reaches the n-th highest of these, and hardly more. Sorting the vocabulary, or copying it for a sorter, takes
    ten times as long.

    Returns:
        None where this is no shortcut: the vocabulary is small, or the logits are no numbers.
    """
    num_rounds = len(logits) // _NUM_GROUPS
    if num_rounds < 2 or num_tokens > _NUM_GROUPS // 2:
        return None
    # Each row of this view deals one token to each group: the maximum goes along the vocabulary, which is fast.
    highest = logits[: num_rounds * _NUM_GROUPS].reshape(num_rounds, _NUM_GROUPS).max(axis=0)
    bound = np.partition(highest, _NUM_GROUPS - num_tokens)[_NUM_GROUPS - num_tokens]
    tokens = np.flatnonzero(logits >= bound)
    return tokens if num_tokens <= len(tokens) < _NUM_GROUPS else None
