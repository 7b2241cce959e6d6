"""What follows from where a trial runs: batch, learning rate, precision; free of torch."""

from __future__ import annotations

import math

from trainables.config import OptimConfig, TrainConfig


def scaled_lr(optim: OptimConfig, train: TrainConfig, workers: int) -> tuple[int, float, str]:
    """The global batch size, the peak learning rate, and a sentence that says how they came about.

    With a global `batch_size` nothing is scaled. With `batch_size_per_worker` the global batch is that times
    the workers, and the rate follows by `lr_scaling` relative to `batch_size`.
    """
    if train.batch_size_per_worker is None:
        return train.batch_size, optim.lr, f"global batch {train.batch_size}, lr {optim.lr:g} as configured"
    batch_size = train.batch_size_per_worker * max(1, workers)
    ratio = batch_size / train.batch_size
    lr = optim.lr * {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[train.lr_scaling]
    return (
        batch_size,
        lr,
        f"global batch {train.batch_size_per_worker} x {max(1, workers)} workers = {batch_size}; "
        f"lr {optim.lr:g} -> {lr:g} ({train.lr_scaling} rule against batch {train.batch_size})",
    )


def uses_bf16(train: TrainConfig, *, use_gpu: bool) -> bool:
    """Whether the forward pass runs in bfloat16 autocast: where asked for, and by default on GPUs (that have it)."""
    return train.precision == "bf16" or (train.precision == "auto" and use_gpu)
