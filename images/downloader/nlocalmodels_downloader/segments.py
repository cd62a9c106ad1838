"""Which bytes to ask for next: pure arithmetic over blocks."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

BLOCK_BYTES = 1024 * 1024

# What is asked for and not yet recorded is all that a kill can cost. This bounds it, over all files of a process.
MAX_OUTSTANDING_BYTES = 16 * 1024 * 1024


# A connection never takes more than this part of what a fair share of the rest would be.
_SHARES_LEFT = 3


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of blocks that one request fetches: bytes `start` to `end`, exclusive."""

    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.start


def num_blocks(size_bytes: int) -> int:
    return -(-size_bytes // BLOCK_BYTES)


def runs(missing_blocks: Iterable[int], size_bytes: int) -> list[Segment]:
    """Joins neighbouring missing blocks (ascending) into the longest segments."""
    joined: list[Segment] = []
    for block in missing_blocks:
        start = block * BLOCK_BYTES
        end = min(start + BLOCK_BYTES, size_bytes)
        if joined and joined[-1].end == start:
            joined[-1] = Segment(joined[-1].start, end)
        else:
            joined.append(Segment(start, end))
    return joined


class Budget:
    """How many bytes may be asked for and not yet recorded, shared by all transfers of a process."""

    def __init__(self, max_bytes: int = MAX_OUTSTANDING_BYTES) -> None:
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._outstanding_bytes = 0

    def take(self, wanted_bytes: int, least_bytes: int) -> int:
        """Returns how many of the wanted bytes may be asked for now: whole blocks or `least_bytes`, 0 if not even those."""
        with self._lock:
            free_bytes = self.max_bytes - self._outstanding_bytes
            granted = wanted_bytes
            if granted > free_bytes:
                granted = free_bytes // BLOCK_BYTES * BLOCK_BYTES
            if granted < least_bytes:
                granted = least_bytes if least_bytes <= free_bytes else 0
            self._outstanding_bytes += granted
            return granted

    def give_back(self, num_bytes: int) -> None:
        with self._lock:
            self._outstanding_bytes -= num_bytes


class SegmentQueue:
    """The missing runs of one file, cut into segments as connections ask for them.

    The more connections share the budget, the smaller the segments; and the less is left, so that the last ones end together
    and new connections find something to do.
    """

    def __init__(self, missing: Iterable[Segment], budget: Budget | None) -> None:
        """Without a budget a run is one segment."""
        self._runs = deque(missing)
        self._budget = budget
        self._lock = threading.Lock()

    @property
    def is_empty(self) -> bool:
        return not self._runs

    def give_back(self, num_bytes: int) -> None:
        """Says that bytes of a segment are recorded, or will not be asked for after all."""
        if self._budget is not None:
            self._budget.give_back(num_bytes)

    def take(self, num_connections: int) -> Segment | None:
        """Returns the next segment, None when nothing is left or nothing may be asked for now."""
        with self._lock:
            if not self._runs:
                return None
            if self._budget is None:
                return self._runs.popleft()
            run = self._runs[0]
            left_bytes = sum(run.num_bytes for run in self._runs)
            share_bytes = min(self._budget.max_bytes // num_connections, left_bytes // (_SHARES_LEFT * num_connections))
            share = max(1, share_bytes // BLOCK_BYTES) * BLOCK_BYTES
            least = min(run.num_bytes, BLOCK_BYTES)
            granted = self._budget.take(min(run.num_bytes, share), least)
            if not granted:
                return None
            self._runs.popleft()
            segment = Segment(run.start, run.start + granted)
            if segment.end < run.end:
                self._runs.appendleft(Segment(segment.end, run.end))
            return segment
