"""What tests share: one small Ray for all that are marked `ray`, and a small data set as shards."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class DigitsShards:
    """Shards of digit scenes of 32 x 32 pixels, as `data.source=shards data.root=...` reads them."""

    root: Path
    """Holds `train` and `val`."""
    num_train: int = 300
    num_val: int = 101
    """Neither 2 nor 3 nor 5 divides it."""


@pytest.fixture(scope="session")
def digits_shards(tmp_path_factory: pytest.TempPathFactory) -> DigitsShards:
    """Five row groups of train, two of val, in shards of two row groups."""
    folder = tmp_path_factory.mktemp("digits")
    made = DigitsShards(folder / "shards")
    scenes = digits.compose(
        folder / "scenes", train_images=made.num_train, val_images=made.num_val, side=32, seed=0
    )
    for split in ("train", "val"):
        records, classes = coco.read(scenes / "annotations" / f"instances_{split}.json", scenes / split)
        shards.write(records, classes, made.root / split, split=split, rows_per_group=64, rows_per_shard=128)
    return made
