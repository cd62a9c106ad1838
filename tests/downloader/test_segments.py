from __future__ import annotations

import pytest

from nlocalmodels_downloader.segments import BLOCK_BYTES, MAX_OUTSTANDING_BYTES, num_blocks, plan_segments, segment_bytes


@pytest.mark.parametrize("num_connections", range(1, 17))
def test_segment_bytes_of_all_connections_stay_within_the_bound(num_connections: int) -> None:
    size = segment_bytes(num_connections)
    assert size % BLOCK_BYTES == 0
    assert 0 < size * num_connections <= MAX_OUTSTANDING_BYTES


@pytest.mark.parametrize(("size", "blocks"), [(1, 1), (BLOCK_BYTES, 1), (BLOCK_BYTES + 1, 2), (5 * BLOCK_BYTES, 5)])
def test_num_blocks_rounds_up(size: int, blocks: int) -> None:
    assert num_blocks(size) == blocks


@pytest.mark.parametrize("missing", [[], [0], [0, 1, 2, 3, 4], [1, 3, 4], [4], [0, 2, 4]])
def test_plan_segments_covers_the_missing_blocks_and_nothing_else(missing: list[int]) -> None:
    size = 4 * BLOCK_BYTES + 100
    segments = plan_segments(missing, size, 2 * BLOCK_BYTES)
    covered = [byte for segment in segments for byte in range(segment.start, segment.end, BLOCK_BYTES)]
    assert covered == [block * BLOCK_BYTES for block in missing]
    assert all(0 < segment.num_bytes <= 2 * BLOCK_BYTES for segment in segments)
    assert sum(s.num_bytes for s in segments) == sum(min(BLOCK_BYTES, size - block * BLOCK_BYTES) for block in missing)
