from __future__ import annotations

from nlocalmodels_server.workers.restarts import Restarts


def test_waits_twice_as_long_each_time_until_it_has_served_for_a_while() -> None:
    restarts = Restarts()
    assert [restarts.next_wait_seconds(1.0) for _ in range(7)] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert restarts.next_wait_seconds(61.0) == 0.5


def test_file_that_ends_three_loads_in_a_row_is_given_up() -> None:
    restarts = Restarts()
    assert restarts.next_wait_seconds(None) == 1.0
    assert restarts.next_wait_seconds(None) == 2.0
    assert restarts.next_wait_seconds(5.0) == 4.0
    assert [restarts.next_wait_seconds(None) is None for _ in range(3)] == [False, False, True]
