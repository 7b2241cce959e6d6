"""The size of training images over the epochs of a progressive schedule; free of torch."""

from __future__ import annotations

from trainables.config import TrainConfig

STEP = 32
"""Pixels; what most backbones divide their input by."""


def epoch_size(train: TrainConfig, image_size: int, epoch: int) -> int:
    """Height and width, in pixels, of the training images of `epoch` (from 0).

    From `train.image_size_start` in the first epoch in a straight line to `train.image_size` in the last, or to
    `image_size`, that of the data, where it is not set. Between the two ends in multiples of 32. Without a start,
    and in a training of one epoch, it is the last size throughout.
    """
    last = train.image_size or image_size
    first = train.image_size_start or last
    if epoch >= train.epochs - 1:
        return last
    if epoch == 0:
        return first
    between = first + (last - first) * epoch / (train.epochs - 1)
    rounded = int(between / STEP + 0.5) * STEP
    return min(max(rounded, min(first, last)), max(first, last))
