from __future__ import annotations

import pytest

from nlocalmodels_server.engine.prompt_lookup import PromptLookup, best_length


def test_guess_is_what_followed_the_same_three_tokens() -> None:
    lookup = PromptLookup()
    assert lookup.guess([1, 2, 3, 4, 5, 6, 1, 2, 3], 2) == [4, 5]


def test_guess_takes_the_latest_place() -> None:
    assert PromptLookup().guess([1, 2, 3, 4, 1, 2, 3, 9, 8, 1, 2, 3], 1) == [9]


def test_guess_repeats_what_repeats_itself() -> None:
    assert PromptLookup().guess([7, 1, 2, 3, 1, 2, 3, 1], 7) == [2, 3, 1, 2, 3, 1, 2]


@pytest.mark.parametrize("tokens", [[], [1], [1, 1], [1, 2, 3], [1, 2, 3, 4, 5]])
def test_guess_of_what_was_never_said_is_empty(tokens: list[int]) -> None:
    assert PromptLookup().guess(tokens, 4) == []


def test_guess_goes_by_what_was_added_since() -> None:
    lookup = PromptLookup()
    tokens = [1, 2, 3, 4]
    assert lookup.guess(tokens, 2) == []
    tokens += [1, 2, 3]
    assert lookup.guess(tokens, 2) == [4, 1]


def test_rate_follows_how_good_the_guesses_are() -> None:
    lookup = PromptLookup()
    first = lookup.rate
    for _ in range(8):
        lookup.expect([1, 2])
        lookup.compare([1, 2, 3])
    assert lookup.rate > 0.9
    for _ in range(12):
        lookup.expect([1, 2])
        lookup.compare([5])
    assert lookup.rate < first + 0.1


def test_compare_counts_nothing_after_the_first_wrong_guess() -> None:
    cautious, bold = PromptLookup(), PromptLookup()
    cautious.expect([1])
    bold.expect([1, 2, 3, 4])
    for lookup in (cautious, bold):
        lookup.compare([9])
    assert cautious.rate == bold.rate
    bold.compare([1])
    assert cautious.rate == bold.rate


def seconds(num_rows: int) -> float:
    return 0.010 + 0.0045 * num_rows


def test_good_guesses_pay_and_bad_ones_do_not() -> None:
    lengths = [best_length(rate, 16, 1, 1.0, seconds)[0] for rate in (0.0, 0.3, 0.6, 0.9, 0.99)]
    assert lengths == sorted(lengths)
    assert lengths[0] == 0
    assert lengths[-1] > 6


def test_guesses_pay_less_where_rows_are_dear() -> None:
    assert best_length(0.6, 16, 1, 1.0, lambda num_rows: num_rows)[0] == 0


def test_best_length_stays_within_bounds() -> None:
    assert best_length(0.99, 3, 1, 1.0, seconds)[0] == 3
    assert best_length(0.99, 0, 1, 1.0, seconds) == (0, 0.0)
