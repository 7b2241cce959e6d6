"""What tests share: one small Ray for all that are marked `ray`, and a small data set as shards."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from datasets import coco, digits, shards

# Read by Ray when it is imported, here and in the processes it starts; what hangs must fail, and soon.
for name, value in {
    "RAY_AUTH_MODE": "disabled",
    "RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "120",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "90",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "OMP_NUM_THREADS": "1",
}.items():
    os.environ.setdefault(name, value)

NUM_CPUS = 4
"""Logical ones: a streaming worker group of two needs that many, on any machine."""


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """The Ray that all tests share; connected as a sweep connects, on this machine and nowhere else."""
    import ray

    from cluster import runtime

    folder = os.environ.get("RAY_TMPDIR") or tempfile.mkdtemp(prefix="ray-")  # short: sockets lie in it
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_TMPDIR", folder)
        runtime.apply_environment(runtime.environment(worker_start_timeout_s=90))
        runtime.connect(None, num_cpus=NUM_CPUS, object_store_bytes=256 * 2**20)
        yield
        ray.shutdown()
    if folder != os.environ.get("RAY_TMPDIR"):
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def digits_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `train` and `val`: shards of 300 and 101 scenes of 32 x 32 pixels.

    Neither 2 nor 3 nor 5 divides 101. Five row groups of train and two of val, two in a shard.
    """
    folder = tmp_path_factory.mktemp("digits")
    scenes = digits.compose(folder / "scenes", train_images=300, val_images=101, side=32, seed=0)
    for split in ("train", "val"):
        records, classes = coco.read(scenes / "annotations" / f"instances_{split}.json", scenes / split)
        target = folder / "shards" / split
        shards.write(records, classes, target, split=split, rows_per_group=64, rows_per_shard=128)
    return folder / "shards"
