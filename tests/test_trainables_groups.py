"""The arithmetic of query groups, against counting."""

from __future__ import annotations

import re

import pytest

from trainables.groups import distinct_query_nums, group_size, live_queries, validate_query_num


def test_80_classes_have_17_distinct_sizes() -> None:
    assert distinct_query_nums(80) == (*range(1, 11), 12, 14, 16, 20, 27, 40, 80)


@pytest.mark.parametrize("num_classes", [1, 2, 7, 80, 81, 97])
def test_every_query_num_is_one_of_the_distinct_models(num_classes: int) -> None:
    sizes = distinct_query_nums(num_classes)
    for query_num in range(1, num_classes + 1):
        owners = {c // group_size(num_classes, query_num) for c in range(num_classes)}
        assert live_queries(num_classes, query_num) == len(owners)
        assert len(owners) in sizes
        assert (len(owners) == query_num) == (query_num in sizes)


def test_group_size_is_the_true_ceiling() -> None:
    assert group_size(10001, 10000) == 2
    assert group_size(80, 80) == 1
    assert group_size(81, 20) == 5
    assert (group_size(80, 60), live_queries(80, 60)) == (2, 40)


def test_more_queries_than_classes_are_refused_with_the_facts() -> None:
    message = "query_num <= num_classes must hold, but got query_num=100, num_classes=80. "
    with pytest.raises(ValueError, match=re.escape(message)):
        validate_query_num(80, 100)


@pytest.mark.parametrize("num_classes, query_num", [(80, 0), (80, -1), (0, 1)])
def test_counts_below_one_are_refused(num_classes: int, query_num: int) -> None:
    with pytest.raises(ValueError, match=">= 1 must hold"):
        group_size(num_classes, query_num)
