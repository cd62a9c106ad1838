"""Which tokens are in the cache, for whom: a radix tree over live and recent sequences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Match:
    """The first `num_tokens` of a prompt are in the cache under `slot`."""

    slot: int
    num_tokens: int


class _Node:
    """A run of cells that the same slots hold. `num_live` of the holders belong to running sequences."""

    __slots__ = ("children", "holders", "num_live", "parent", "tokens")

    def __init__(self, parent: _Node | None, tokens: list[int], holders: set[int], num_live: int) -> None:
        self.parent = parent
        self.tokens = tokens
        self.holders = holders
        self.num_live = num_live
        self.children: list[_Node] = []


class PrefixTree:
    """Mirrors the cells of a unified cache: each node is a run of cells, each slot a path from the root.

    Where a slot was given another's prefix, the two share nodes as they share cells, so the tree's size is exactly the number
    of used cells. Two slots that computed the same tokens apart have a node each, unlike in a plain radix tree; a lookup takes
    the longer way. The slots of running sequences are live, the others are kept for their prefixes.
    """

    def __init__(self) -> None:
        self._root = _Node(None, [], set(), 0)
        self._leaves: dict[int, _Node] = {}
        self._live: set[int] = set()
        self.num_cells = 0
        self.num_live_cells = 0

    def open(self, slot: int, prefix: Match | None = None) -> None:
        """Begins a live sequence, with the cells of a prefix that its slot has been given."""
        assert slot not in self._leaves
        node = self._root
        if prefix is not None:
            node = self._node_at(prefix.slot, prefix.num_tokens)
        self._leaves[slot] = node
        self._live.add(slot)
        for part in self._path(node):
            part.holders.add(slot)
            self._count_live(part, 1)

    def reopen(self, slot: int, num_tokens: int) -> None:
        """Makes a kept sequence live again, cut to its first `num_tokens`."""
        node = self._node_at(slot, num_tokens)
        self._release(slot, self._leaves[slot], node)
        self._leaves[slot] = node
        self._live.add(slot)
        for part in self._path(node):
            self._count_live(part, 1)

    def extend(self, slot: int, tokens: list[int]) -> None:
        """Adds tokens that were computed. Costs no more than their number."""
        leaf = self._leaves[slot]
        if leaf is self._root or len(leaf.holders) > 1 or leaf.children:
            parent = leaf
            leaf = self._leaves[slot] = _Node(parent, [], {slot}, 1)
            parent.children.append(leaf)
        leaf.tokens += tokens
        self.num_cells += len(tokens)
        self.num_live_cells += len(tokens)

    def keep(self, slot: int) -> None:
        """Ends a live sequence, but not its cells."""
        self._live.remove(slot)
        for part in self._path(self._leaves[slot]):
            self._count_live(part, -1)

    def drop(self, slot: int) -> None:
        """Forgets a sequence, and the cells that no other holds."""
        if slot in self._live:
            self.keep(slot)
        self._release(slot, self._leaves.pop(slot), self._root)

    def length(self, slot: int) -> int:
        """Returns the number of tokens that a slot holds."""
        return sum(len(part.tokens) for part in self._path(self._leaves[slot]))

    def num_own_cells(self, slot: int) -> int:
        """Returns how many cells go when a slot is dropped."""
        return sum(len(part.tokens) for part in self._path(self._leaves[slot]) if len(part.holders) == 1)

    def match(self, tokens: list[int]) -> Match | None:
        """Returns the longest prefix of `tokens` that some slot holds, None if there is none."""
        node, num_tokens = self._longest(tokens)
        return Match(next(iter(node.holders)), num_tokens) if num_tokens else None

    def num_kept_cells(self, prefix: Match) -> int:
        """Returns how many cells of a prefix no live sequence holds: they become live with one that takes it."""
        total = start = 0
        for part in reversed(list(self._path(self._leaves[prefix.slot]))):
            if start >= prefix.num_tokens:
                break
            if not part.num_live:
                total += min(len(part.tokens), prefix.num_tokens - start)
            start += len(part.tokens)
        return total

    def _longest(self, tokens: list[int]) -> tuple[_Node, int]:
        best, best_length = self._root, 0
        # Each with the number of tokens up to its end. Without recursion, since a path may have thousands of nodes.
        stack = [(self._root, 0)]
        while stack:
            node, start = stack.pop()
            for child in node.children:
                num_common = common_length(child.tokens, tokens, start)
                if start + num_common > best_length:
                    best, best_length = child, start + num_common
                if num_common == len(child.tokens):
                    stack.append((child, start + num_common))
        return best, best_length

    def _node_at(self, slot: int, num_tokens: int) -> _Node:
        """Returns the node of a slot's path that ends after `num_tokens`, split off if need be."""
        path = list(self._path(self._leaves[slot]))
        start = 0
        for node in reversed(path):
            if start + len(node.tokens) > num_tokens:
                return self._split(node, num_tokens - start) if num_tokens > start else node.parent or self._root
            start += len(node.tokens)
        assert start == num_tokens
        return self._leaves[slot]

    def _split(self, node: _Node, num_tokens: int) -> _Node:
        """Puts the first `num_tokens` of a node into one of their own, above it."""
        parent = node.parent
        assert parent is not None
        upper = _Node(parent, node.tokens[:num_tokens], set(node.holders), node.num_live)
        upper.children = [node]
        parent.children[parent.children.index(node)] = upper
        node.parent = upper
        node.tokens = node.tokens[num_tokens:]
        return upper

    def _release(self, slot: int, leaf: _Node, stop: _Node) -> None:
        """Takes a slot out of the nodes from `leaf` up to, not including, `stop`."""
        node = leaf
        while node is not stop and node.parent is not None:
            node.holders.remove(slot)
            parent = node.parent
            if not node.holders:
                parent.children.remove(node)
                self.num_cells -= len(node.tokens)
            node = parent

    def _path(self, leaf: _Node) -> Iterator[_Node]:
        """Yields the nodes from a leaf up to, not including, the root."""
        node = leaf
        while node.parent is not None:
            yield node
            node = node.parent

    def _count_live(self, node: _Node, change: int) -> None:
        was_live = node.num_live > 0
        node.num_live += change
        if was_live != (node.num_live > 0):
            self.num_live_cells += len(node.tokens) if change > 0 else -len(node.tokens)


def common_length(run: list[int], tokens: list[int], start: int = 0) -> int:
    """Returns how many first items of `run` are equal to those of `tokens` from `start` on.

    Compares slices by halves, which is done in C, since prompts have thousands of tokens.
    """
    low, high = 0, min(len(run), len(tokens) - start)
    if high <= 0 or run[0] != tokens[start]:
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        if run[low:middle] == tokens[start + low : start + middle]:
            low = middle
        else:
            high = middle - 1
    return low
