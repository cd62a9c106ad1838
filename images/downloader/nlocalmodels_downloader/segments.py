"""Which bytes to ask for next: pure arithmetic over blocks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

BLOCK_BYTES = 1024 * 1024

# What is asked for and not yet recorded is all that a kill can cost. This bounds it.
MAX_OUTSTANDING_BYTES = 16 * 1024 * 1024


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


def segment_bytes(num_connections: int) -> int:
    """Returns how much one connection may ask for at once: whole blocks, so that all together stay within the bound."""
    return max(1, MAX_OUTSTANDING_BYTES // num_connections // BLOCK_BYTES) * BLOCK_BYTES


def plan_segments(missing_blocks: Iterable[int], size_bytes: int, max_segment_bytes: int) -> deque[Segment]:
    """Joins neighbouring missing blocks (ascending) into segments of at most `max_segment_bytes`."""
    segments: deque[Segment] = deque()
    for block in missing_blocks:
        start = block * BLOCK_BYTES
        end = min(start + BLOCK_BYTES, size_bytes)
        last = segments[-1] if segments else None
        if last is not None and last.end == start and end - last.start <= max_segment_bytes:
            segments[-1] = Segment(last.start, end)
        else:
            segments.append(Segment(start, end))
    return segments
