from __future__ import annotations

import random
import threading

import pytest

from nlocalmodels_downloader.segments import BLOCK_BYTES, MAX_OUTSTANDING_BYTES, Budget, Segment, SegmentQueue, num_blocks, runs


@pytest.mark.parametrize(("size", "blocks"), [(1, 1), (BLOCK_BYTES, 1), (BLOCK_BYTES + 1, 2), (5 * BLOCK_BYTES, 5)])
def test_num_blocks_rounds_up(size: int, blocks: int) -> None:
    assert num_blocks(size) == blocks


@pytest.mark.parametrize("missing", [[], [0], [0, 1, 2, 3, 4], [1, 3, 4], [4], [0, 2, 4]])
def test_runs_cover_the_missing_blocks_and_nothing_else(missing: list[int]) -> None:
    size = 4 * BLOCK_BYTES + 100
    joined = runs(missing, size)
    covered = [byte for run in joined for byte in range(run.start, run.end, BLOCK_BYTES)]
    assert covered == [block * BLOCK_BYTES for block in missing]
    assert sum(run.num_bytes for run in joined) == sum(min(BLOCK_BYTES, size - block * BLOCK_BYTES) for block in missing)
    assert len(joined) == len([block for block in missing if block - 1 not in missing]), "neighbours are one run"


@pytest.mark.parametrize("num_connections", range(1, 17))
def test_segments_of_all_connections_stay_within_the_bound_and_none_goes_without(num_connections: int) -> None:
    segments = SegmentQueue([Segment(0, 100 * BLOCK_BYTES)], Budget())
    taken = [segments.take(num_connections) for _ in range(num_connections)]
    sizes = {segment.num_bytes for segment in taken if segment is not None}
    assert None not in taken
    assert len(sizes) == 1
    assert all(size % BLOCK_BYTES == 0 and 0 < size * num_connections <= MAX_OUTSTANDING_BYTES for size in sizes)


@pytest.mark.parametrize("num_connections", [1, 2, 5, 16])
def test_segments_become_smaller_towards_the_end(num_connections: int) -> None:
    """Else one connection has much to do while the others have nothing."""
    left_bytes = 64 * BLOCK_BYTES
    segments = SegmentQueue([Segment(0, left_bytes)], Budget())
    sizes = []
    while (segment := segments.take(num_connections)) is not None:
        assert segment.num_bytes <= max(BLOCK_BYTES, left_bytes // num_connections)
        left_bytes -= segment.num_bytes
        sizes.append(segment.num_bytes)
        segments.give_back(segment.num_bytes)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == BLOCK_BYTES


def test_queue_without_a_budget_hands_out_whole_runs() -> None:
    wanted = [Segment(0, 100 * BLOCK_BYTES), Segment(200 * BLOCK_BYTES, 201 * BLOCK_BYTES)]
    segments = SegmentQueue(wanted, None)
    assert [segments.take(1), segments.take(16), segments.take(1)] == [*wanted, None]
    segments.give_back(5)


def test_budget_gives_whole_blocks_or_the_least() -> None:
    budget = Budget(3 * BLOCK_BYTES)
    assert budget.take(2 * BLOCK_BYTES, BLOCK_BYTES) == 2 * BLOCK_BYTES
    assert budget.take(BLOCK_BYTES // 2, BLOCK_BYTES // 2) == BLOCK_BYTES // 2
    assert budget.take(BLOCK_BYTES, BLOCK_BYTES) == 0
    assert budget.take(10, 10) == 10
    budget.give_back(2 * BLOCK_BYTES)
    assert budget.take(5 * BLOCK_BYTES, BLOCK_BYTES) == 2 * BLOCK_BYTES


def _random_runs(chance: random.Random) -> tuple[int, list[Segment]]:
    size = chance.randint(1, 40 * BLOCK_BYTES)
    missing = [block for block in range(num_blocks(size)) if chance.random() < 0.7]
    return size, runs(missing, size)


@pytest.mark.parametrize("seed", range(150))
def test_queues_of_one_budget_hand_out_every_byte_once_and_never_too_many(seed: int) -> None:
    """Several files at once, any order of taking, recording and giving back."""
    chance = random.Random(seed)
    budget = Budget(
        chance.choice([BLOCK_BYTES, 3 * BLOCK_BYTES, MAX_OUTSTANDING_BYTES, chance.randint(1, 30) * BLOCK_BYTES + 7])
    )
    wanted = [_random_runs(chance)[1] for _ in range(chance.randint(1, 3))]
    queues = [SegmentQueue(files_runs, budget) for files_runs in wanted]
    handed_out: list[list[Segment]] = [[] for _ in queues]
    held: list[tuple[SegmentQueue, int]] = []
    while held or not all(queue.is_empty for queue in queues):
        number = chance.randrange(len(queues))
        segment = queues[number].take(chance.randint(1, 32)) if chance.random() < 0.6 else None
        if segment is not None:
            handed_out[number].append(segment)
            held.append((queues[number], segment.num_bytes))
        elif held:
            # A block of it is recorded, or its stream has ended for good.
            queue, num_bytes = held.pop(chance.randrange(len(held)))
            given_back = min(num_bytes, BLOCK_BYTES) if chance.random() < 0.8 else num_bytes
            queue.give_back(given_back)
            if given_back < num_bytes:
                held.append((queue, num_bytes - given_back))
        else:
            fresh = next(number for number, queue in enumerate(queues) if not queue.is_empty)
            segment = queues[fresh].take(chance.randint(1, 32))
            assert segment is not None, "with nothing outstanding there is always something to ask for"
            handed_out[fresh].append(segment)
            held.append((queues[fresh], segment.num_bytes))
        assert sum(num_bytes for _, num_bytes in held) <= budget.max_bytes
    for files_runs, segments in zip(wanted, handed_out, strict=True):
        assert all(segment.start % BLOCK_BYTES == 0 and segment.num_bytes > 0 for segment in segments)
        assert _joined(segments) == files_runs
    assert all(queue.take(1) is None for queue in queues)
    assert budget.take(budget.max_bytes, budget.max_bytes) == budget.max_bytes, "all was given back"


def _joined(segments: list[Segment]) -> list[Segment]:
    """Joins what touches; bytes that were handed out twice or not at all leave another list than the runs."""
    joined: list[Segment] = []
    for segment in sorted(segments, key=lambda segment: segment.start):
        if joined and joined[-1].end == segment.start:
            joined[-1] = Segment(joined[-1].start, segment.end)
        else:
            joined.append(segment)
    return joined


def test_queue_of_many_threads_hands_out_every_byte_once() -> None:
    budget = Budget()
    segments = SegmentQueue([Segment(0, 500 * BLOCK_BYTES + 5)], budget)
    taken: list[Segment] = []
    together = threading.Barrier(8)

    def work() -> None:
        together.wait()
        while not segments.is_empty:
            segment = segments.take(8)
            if segment is not None:
                taken.append(segment)
                segments.give_back(segment.num_bytes)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _joined(taken) == [Segment(0, 500 * BLOCK_BYTES + 5)]
    assert budget.take(MAX_OUTSTANDING_BYTES, MAX_OUTSTANDING_BYTES) == MAX_OUTSTANDING_BYTES
