"""Who sees which image when: pure functions of integers.

The order of an epoch depends on (seed, epoch) and on how the rows lie in row groups, never on the number of
workers or on how the data is fed, so a run keeps its meaning when it moves between machines. A set that fits
the shuffle window is permuted as a whole. A larger one has its row groups permuted, and then each row is moved
by a random distance of at most `window` rows: reading stays sequential, and the first batch needs only the
first few row groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def epoch_order(group_rows: Sequence[int], *, seed: int, epoch: int, window: int) -> np.ndarray:
    """The global order of one epoch.

    Args:
        group_rows: rows in each row group, in the order in which the groups lie in the shards.
        seed, epoch: the only source of randomness.
        window: how far a row may be moved, in rows.

    Returns:
        (N,) int64: a permutation of the row numbers 0 .. N-1, N = sum(group_rows).
    """
    generator = np.random.default_rng([seed, epoch])
    rows = np.asarray(group_rows, dtype=np.int64)
    num_rows = int(rows.sum())
    if num_rows <= window:
        return generator.permutation(num_rows)
    starts = np.concatenate([[0], np.cumsum(rows)[:-1]])
    arrival = np.concatenate([starts[g] + np.arange(rows[g]) for g in generator.permutation(len(rows))])
    return arrival[np.argsort(np.arange(num_rows) + generator.uniform(0, window, num_rows), kind="stable")]


def repeated(epoch_rows: np.ndarray, repeats: int) -> np.ndarray:
    """An epoch of the same length in which each row stands `repeats` times in a row (arXiv 1902.05509).

    The rows are the first ceil(N / repeats) of `epoch_rows`. The copies of one lie in one global batch, but for the
    few that a border between two batches divides.

    Raises:
        ValueError: `repeats` is less than 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, but got {repeats}. Raise augment.repeats.")
    return epoch_rows if repeats == 1 else np.repeat(epoch_rows, repeats)[: len(epoch_rows)]


def num_batches(num_rows: int, batch_size: int) -> int:
    """Batches in an epoch that uses every row once."""
    return -(-num_rows // batch_size)


def batches(order: np.ndarray, batch_size: int, *, rank: int = 0, world_size: int = 1) -> list[np.ndarray]:
    """This rank's rows of every global batch, in order.

    The rows are dealt to `num_batches` batches whose sizes differ by at most one, so no epoch ends in a tiny
    batch; each batch is dealt to the ranks in the same way. The union over the ranks does not depend on
    `world_size`.

    Raises:
        ValueError: a rank would get an empty batch.
    """
    global_batches = np.array_split(order, num_batches(len(order), batch_size))
    smallest = min(len(batch) for batch in global_batches)
    if smallest < world_size:
        raise ValueError(
            f"every worker needs an image of every batch, but got {smallest} images in the smallest batch for "
            f"world_size={world_size}. Raise train.batch_size or lower cluster.workers."
        )
    # In turn, not in pieces: copies of one image (`repeated`) stand beside each other and belong to different ranks.
    return [batch[rank::world_size] for batch in global_batches]
