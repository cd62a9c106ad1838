from __future__ import annotations

import random

from nlocalmodels_server.engine.prefix_tree import Match, PrefixTree, common_length


def tree_of(**sequences: list[int]) -> PrefixTree:
    """Makes a tree of live sequences in the slots 0, 1, ..., none of which shares cells."""
    tree = PrefixTree()
    for slot, tokens in enumerate(sequences.values()):
        tree.open(slot)
        tree.extend(slot, tokens)
    return tree


def test_match_is_the_longest_prefix_of_any_slot() -> None:
    tree = tree_of(a=[1, 2, 3, 4], b=[1, 2, 9], c=[5])
    assert tree.match([1, 2, 3, 7]) == Match(0, 3)
    assert tree.match([1, 2, 9, 9]) == Match(1, 3)
    assert tree.match([6, 1, 2]) is None
    assert tree.match([]) is None


def test_shared_cells_count_once_and_stay_for_the_last_that_holds_them() -> None:
    tree = tree_of(a=[1, 2, 3, 4])
    tree.open(1, Match(0, 3))
    tree.extend(1, [8, 9])
    assert tree.num_cells == 6
    assert (tree.num_own_cells(0), tree.num_own_cells(1)) == (1, 2)
    tree.drop(0)
    assert tree.num_cells == tree.num_own_cells(1) == 5
    assert tree.match([1, 2, 3, 4]) == Match(1, 3)
    tree.drop(1)
    assert tree.num_cells == tree.num_live_cells == 0
    assert tree.match([1, 2, 3]) is None


def test_kept_cells_are_live_where_a_running_sequence_shares_them() -> None:
    tree = tree_of(a=[1, 2, 3, 4])
    tree.keep(0)
    assert (tree.num_cells, tree.num_live_cells) == (4, 0)
    assert tree.num_kept_cells(Match(0, 3)) == 3
    tree.open(1, Match(0, 3))
    assert (tree.num_cells, tree.num_live_cells) == (4, 3)
    assert tree.num_kept_cells(Match(0, 4)) == 1


def test_a_kept_sequence_goes_on_from_where_it_is_cut() -> None:
    tree = tree_of(a=[1, 2, 3, 4])
    tree.keep(0)
    tree.reopen(0, 2)
    tree.extend(0, [7])
    assert tree.num_cells == tree.num_live_cells == tree.length(0) == 3
    assert tree.match([1, 2, 7, 7]) == Match(0, 3)
    assert tree.match([1, 2, 3]) == Match(0, 2)


def test_equal_sequences_that_were_computed_apart_are_found_and_counted_apart() -> None:
    tree = tree_of(a=[1, 2, 3], b=[1, 2, 3])
    tree.extend(1, [4])
    assert tree.num_cells == 7
    assert tree.match([1, 2, 3, 4, 5]) == Match(1, 4)


def test_a_path_may_have_more_nodes_than_python_may_nest_calls() -> None:
    tree = tree_of(a=[1])
    for slot in range(1, 1500):
        tree.open(slot, Match(slot - 1, slot))
        tree.extend(slot, [slot])
    assert tree.match([1, *range(1, 1499)]) is not None
    assert tree.num_cells == 1500


def test_common_length_of_long_lists() -> None:
    rng = random.Random(1)
    tokens = [rng.randrange(1000) for _ in range(5000)]
    for num_common in (0, 1, 2, 63, 64, 65, 4999, 5000):
        other = [*tokens[:num_common], -1, *tokens[num_common + 1 :]]
        assert common_length(tokens, other) == num_common
        assert common_length(tokens, [-5, *other], 1) == num_common


def test_the_tree_is_as_a_plain_list_of_cells_says() -> None:
    """Compared with the slowest way there is, over a random history."""
    rng = random.Random(5)
    tree = PrefixTree()
    cells: dict[int, list[tuple[int, int]]] = {}
    live: set[int] = set()
    for number in range(4000):
        free = [slot for slot in range(12) if slot not in cells]
        action = rng.random()
        if action < 0.3 and free:
            slot, prompt = rng.choice(free), [rng.randrange(2) for _ in range(rng.randint(1, 12))]
            found = tree.match(prompt)
            longest = max((common_length([t for _, t in held], prompt) for held in cells.values()), default=0)
            assert (found.num_tokens if found else 0) == longest
            tree.open(slot, found)
            cells[slot] = cells[found.slot][: found.num_tokens] if found else []
            live.add(slot)
        elif action < 0.6 and live:
            slot = rng.choice(sorted(live))
            tokens = [rng.randrange(2) for _ in range(rng.randint(1, 3))]
            tree.extend(slot, tokens)
            cells[slot] += [(1000 * number + place, token) for place, token in enumerate(tokens)]
        elif action < 0.8 and live:
            slot = rng.choice(sorted(live))
            tree.keep(slot)
            live.remove(slot)
        elif cells:
            slot = rng.choice(sorted(cells))
            if slot not in live and rng.random() < 0.5:
                num_tokens = rng.randint(0, len(cells[slot]))
                tree.reopen(slot, num_tokens)
                cells[slot] = cells[slot][:num_tokens]
                live.add(slot)
            else:
                tree.drop(slot)
                del cells[slot]
                live.discard(slot)
        assert tree.num_cells == len({cell for held in cells.values() for cell, _ in held})
        assert tree.num_live_cells == len({cell for slot in live for cell, _ in cells[slot]})
        assert all(tree.length(slot) == len(held) for slot, held in cells.items())
