"""Threads give results in order, and begin no more than is asked for."""

import pytest

from daft.common.threads import parallel_map


def test_results_are_in_the_order_of_the_items():
    squares = [i * i for i in range(100)]
    assert list(parallel_map(lambda i: i * i, range(100), 4, "squares", queued=7)) == squares


def test_no_more_than_queued_items_are_begun_ahead_of_need():
    begun: list[int] = []
    results = parallel_map(begun.append, range(100), 2, "items", queued=10)
    next(results)
    results.close()
    assert len(begun) <= 10


def test_an_error_in_one_item_is_raised_where_its_result_is_read():
    results = parallel_map(lambda i: 1 // (2 - i), range(5), 2, "items")
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
