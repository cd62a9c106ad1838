from __future__ import annotations

import numpy as np
import pytest

from nlocalmodels_server.engine.candidates import likeliest


@pytest.mark.parametrize("num_vocab", [50_000, 262_144, 151_937])
@pytest.mark.parametrize("num_tokens", [1, 40, 90])
def test_likeliest_has_the_highest_and_hardly_more(num_vocab: int, num_tokens: int) -> None:
    rng = np.random.default_rng(num_vocab + num_tokens)
    for _ in range(20):
        logits = rng.normal(size=num_vocab).astype(np.float32)
        # Neighbours are often alike, and the last few are in no group.
        logits[100:150] += 5
        logits[-3:] += 8
        found = likeliest(logits, num_tokens)
        assert found is not None
        highest = np.argsort(logits)[-num_tokens:]
        assert set(highest) <= set(found)
        assert len(found) < 4 * num_tokens + 60


def test_likeliest_takes_all_that_are_equal() -> None:
    logits = np.zeros(100_000, dtype=np.float32)
    logits[[5, 70_000, 99_999]] = 1.0
    found = likeliest(logits, 3)
    # The last one is in no group, so that one of the others is the bound.
    assert found is None or set(found) >= {5, 70_000, 99_999}


@pytest.mark.parametrize(
    "logits", [np.zeros(1500, np.float32), np.full(100_000, np.nan, np.float32), np.zeros(100_000, np.float32)], ids=str
)
def test_likeliest_leaves_alone_what_it_cannot_shorten(logits: np.ndarray) -> None:
    assert likeliest(logits, 40) is None
