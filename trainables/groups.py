"""How query_num queries share num_classes classes: ML-Decoder's group decoding (arXiv 2111.12933).

Every query owns `group_size` consecutive classes: class c belongs to query c // group_size. When
query_num does not divide num_classes evenly enough, the last queries own no class at all. Such dead queries
cost time, never receive a gradient and change no logit, so query_num=60 for 80 classes is query_num=40 plus
waste. Free of torch, so that a dry run and a search space can use it.
"""

from __future__ import annotations


def validate_query_num(num_classes: int, query_num: int) -> None:
    """Raise ValueError unless 1 <= query_num <= num_classes."""
    if num_classes < 1:
        raise ValueError(f"num_classes >= 1 must hold, but got num_classes={num_classes}. Name the classes.")
    if query_num < 1:
        raise ValueError(
            f"query_num >= 1 must hold, but got query_num={query_num}, num_classes={num_classes}. "
            f"Use None for one query per class."
        )
    if query_num > num_classes:
        raise ValueError(
            f"query_num <= num_classes must hold, but got query_num={query_num}, num_classes={num_classes}. "
            f"Lower query_num to {num_classes} (one query per class) or below."
        )


def group_size(num_classes: int, query_num: int) -> int:
    """Classes per query, ceil(num_classes / query_num); ValueError as in `validate_query_num`."""
    validate_query_num(num_classes, query_num)
    # In integers: the reference's int(K / Q + 0.999) is one too small for K=10001, Q=10000.
    return -(-num_classes // query_num)


def live_queries(num_classes: int, query_num: int) -> int:
    """Queries that own at least one class; the other query_num - live_queries are dead."""
    return -(-num_classes // group_size(num_classes, query_num))


def distinct_query_nums(num_classes: int) -> tuple[int, ...]:
    """All query_num without dead queries, ascending: each is a different model, and there are no others.

    For 80 classes these are 17 values: 1 to 10, 12, 14, 16, 20, 27, 40 and 80.
    """
    validate_query_num(num_classes, 1)
    return tuple(q for q in range(1, num_classes + 1) if live_queries(num_classes, q) == q)
