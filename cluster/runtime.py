"""Connects to Ray, or starts one on this machine, and says what the cluster has."""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
from typing import Any

import ray

from cluster.node import Node

# Read by Ray when it starts, so they are set before `ray.init`.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Tune gives a stopped trial's thread 2 s by default and drops the next trial when it takes longer.
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "600",
    # result.json and progress.csv: the run folder has its own records.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune prints a box of its own even at verbose=0
}


def environment(worker_start_timeout_s: int) -> dict[str, str]:
    """What the driver and every trial process need in their environment."""
    return {**ENVIRONMENT, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(worker_start_timeout_s)}


def apply_environment(wanted: dict[str, str]) -> None:
    """Set each variable of this process that is not set; a value that a person has set wins."""
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def connect(
    address: str | None,
    *,
    num_cpus: int | None = None,
    object_store_bytes: int | None = None,
    dashboard: bool = False,
) -> str:
    """Connect to `address`, to the cluster that this process belongs to, or to a Ray of our own.

    Returns a sentence that says which, and why. Does nothing when this process is connected already.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if ray.is_initialized():
        return f"cluster at {address}" if address else "this process was connected to Ray already"
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        ray.init(address=address, **common)
        return f"cluster at {address}"
    if "RAY_AUTH_MODE" not in os.environ:
        # A Ray of our own listens on every interface, and then asks for a token by default: one that no file holds.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray.init(
        address="local",
        num_cpus=num_cpus,
        object_store_memory=object_store_bytes,
        include_dashboard=dashboard,
        _temp_dir=os.environ.get("RAY_TMPDIR") or os.path.join(tempfile.gettempdir(), "ray"),
        **common,
    )
    return "our own, on this machine (no cluster.address and no RAY_ADDRESS)"


def nodes() -> list[Node]:
    """The machines that are alive now."""
    return [
        Node(
            num_cpus=node["Resources"].get("CPU", 0.0),
            num_gpus=node["Resources"].get("GPU", 0.0),
            object_store_bytes=int(node["Resources"].get("object_store_memory", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
