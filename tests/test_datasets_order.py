from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import order

GROUPS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@given(GROUPS, st.integers(0, 99), st.integers(0, 99), st.integers(1, 64))
def test_every_epoch_is_a_permutation(group_rows: list[int], seed: int, epoch: int, window: int) -> None:
    rows = order.epoch_order(group_rows, seed=seed, epoch=epoch, window=window)
    assert sorted(rows) == list(range(sum(group_rows)))


@settings(deadline=None)
@given(GROUPS, st.integers(1, 16), st.integers(1, 5))
def test_the_workers_together_see_each_global_batch(group_rows: list[int], batch_size: int, world_size: int) -> None:
    rows = order.epoch_order(group_rows, seed=1, epoch=2, window=64)
    alone = order.batches(rows, batch_size)
    if min(map(len, alone)) < world_size:
        with pytest.raises(ValueError, match="every worker needs an image"):
            order.batches(rows, batch_size, world_size=world_size)
        return
    shares = [order.batches(rows, batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert len(alone) == order.num_batches(len(rows), batch_size)
    for number, batch in enumerate(alone):
        assert sorted(np.concatenate([share[number] for share in shares])) == sorted(batch)
        assert max(len(share[number]) for share in shares) - min(len(share[number]) for share in shares) <= 1


@given(st.integers(1, 3000), st.integers(1, 300))
def test_batches_differ_by_at_most_one_row(num_rows: int, batch_size: int) -> None:
    sizes = {len(batch) for batch in order.batches(np.arange(num_rows), batch_size)}
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def test_the_order_changes_with_epoch_and_seed_only() -> None:
    def run(seed: int, epoch: int) -> np.ndarray:
        return order.epoch_order([128] * 40, seed=seed, epoch=epoch, window=2048)

    assert np.array_equal(run(0, 0), run(0, 0))
    assert not np.array_equal(run(0, 0), run(0, 1))
    assert not np.array_equal(run(0, 0), run(1, 0))


def test_a_large_set_is_read_a_few_row_groups_at_a_time() -> None:
    groups, window = 200, 1024
    rows = order.epoch_order([128] * groups, seed=0, epoch=0, window=window)
    first_batch = rows[:64] // 128
    assert len(set(first_batch)) <= 6  # the first batch waits for a few groups, not for a whole window
    # Rows of a group lie within the window of each other, and neighbours come from several groups.
    positions = np.empty(len(rows), np.int64)
    positions[rows] = np.arange(len(rows))
    assert max(np.ptp(positions.reshape(groups, 128), axis=1)) < 2 * window
    assert np.mean([len(set(batch // 128)) for batch in order.batches(rows, 64)]) > 6


def test_a_small_set_is_permuted_as_a_whole() -> None:
    rows = order.epoch_order([64] * 16, seed=0, epoch=0, window=1024)
    assert len(set(rows[:64] // 64)) > 8


@settings(deadline=None)
@given(GROUPS, st.integers(1, 5), st.integers(0, 9))
def test_repeats_keep_the_length_of_an_epoch_and_take_its_first_images(
    group_rows: list[int], repeats: int, epoch: int
) -> None:
    rows = order.epoch_order(group_rows, seed=3, epoch=epoch, window=64)
    repeated = order.repeated(rows, repeats)
    distinct = -(-len(rows) // repeats)
    assert len(repeated) == len(rows)
    assert list(dict.fromkeys(repeated.tolist())) == rows[:distinct].tolist()  # in the order of the epoch
    counts = np.unique(repeated, return_counts=True)[1]
    assert (np.sort(counts)[1:] == repeats).all()  # all but at most one, which the end of the epoch cuts
    positions = [np.flatnonzero(repeated == row) for row in rows[:distinct]]
    assert all(np.ptp(where) == len(where) - 1 for where in positions)  # side by side


@settings(deadline=None)
@given(GROUPS, st.integers(1, 16), st.integers(1, 4))
def test_copies_of_an_image_share_a_global_batch_unless_its_border_divides_them(
    group_rows: list[int], batch_size: int, repeats: int
) -> None:
    rows = order.repeated(order.epoch_order(group_rows, seed=0, epoch=0, window=64), repeats)
    parts = order.batches(rows, batch_size)
    assert len(parts) == order.num_batches(sum(group_rows), batch_size)
    for before, after in pairwise(parts):
        assert len(set(before.tolist()) & set(after.tolist())) <= 1


def test_one_repeat_changes_nothing_and_none_is_refused() -> None:
    rows = order.epoch_order([40, 3], seed=0, epoch=0, window=8)
    assert order.repeated(rows, 1) is rows
    with pytest.raises(ValueError, match="repeats must be at least 1, but got 0"):
        order.repeated(rows, 0)


@pytest.mark.parametrize("world_size", [3, 4, 8])
def test_copies_of_an_image_go_to_different_ranks(world_size: int) -> None:
    rows = order.repeated(order.epoch_order([128] * 20, seed=0, epoch=0, window=5000), 3)
    for rank in range(world_size):
        for batch in order.batches(rows, 256, rank=rank, world_size=world_size):
            assert len(np.unique(batch)) == len(batch)
