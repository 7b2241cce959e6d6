"""One machine as the plan needs it; free of Ray, so that a dry run can ask for this one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

OBJECT_STORE_SHARE = 0.3
"""Of the available memory: Ray's default."""


@dataclass(frozen=True)
class Node:
    """What a machine offers."""

    num_cpus: float
    num_gpus: float
    object_store_bytes: int


def local_node(num_cpus: int | None, object_store_bytes: int | None) -> Node:
    """This machine, about as a Ray of our own would see it: its shared memory bounds the object store."""
    if object_store_bytes is None:
        shared = os.statvfs("/dev/shm") if Path("/dev/shm").exists() else None
        bound = shared.f_frsize * shared.f_bavail if shared else _available_memory()
        object_store_bytes = int(min(OBJECT_STORE_SHARE * _available_memory(), bound))
    return Node(num_cpus or len(os.sched_getaffinity(0)), _visible_gpus(), object_store_bytes)


def _available_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def _visible_gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    present = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    return present if visible is None else min(present, len([gpu for gpu in visible.split(",") if gpu.strip()]))
