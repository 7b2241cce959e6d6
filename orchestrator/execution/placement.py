"""Connects to Ray and places a request on what is there."""

from __future__ import annotations

import os

from rich.console import Console

from cluster import runtime
from cluster.node import local_node
from orchestrator.config.overrides import RequestError
from orchestrator.execution.request import Request
from orchestrator.execution.sizing import Placement, place, store_bytes


def refuse_early(request: Request) -> None:
    """Refuse a request that does not fit before anything is written; on this machine, before Ray is started.

    Raises:
        RequestError: it does not fit, with the arithmetic.
    """
    experiment = request.experiment
    if experiment.cluster.address or os.environ.get("RAY_ADDRESS"):
        _connect(request)
        nodes = runtime.nodes()
    else:
        nodes = [local_node(experiment.cluster.num_cpus, store_bytes(experiment))]
    place(experiment, request.source.num_images, nodes)


def connect_and_plan(request: Request, console: Console) -> Placement:
    """Connect, place, and print each choice with its reason.

    Raises:
        RequestError: the cluster cannot be reached, or the request does not fit it.
    """
    console.print(f"ray: {_connect(request)}")
    nodes = runtime.nodes()
    placement = place(request.experiment, request.source.num_images, nodes)
    for reason in placement.reasons:
        console.print(reason, soft_wrap=True)
    if len(nodes) > 1:
        console.print(
            f"{len(nodes)} nodes: each must see {request.root}, where shards and checkpoints lie", soft_wrap=True
        )
    return placement


def _connect(request: Request) -> str:
    config = request.experiment.cluster
    runtime.apply_environment(runtime.environment(config.worker_start_timeout_s))
    try:
        return runtime.connect(
            config.address,
            num_cpus=config.num_cpus,
            object_store_bytes=store_bytes(request.experiment),
            # Ray Train frees the CPUs of a stopped trial's workers only once the dashboard has told it of the stop.
            dashboard=config.dashboard or config.workers > 0,
        )
    except ConnectionError as error:
        raise RequestError(
            f"the cluster must be reachable, but {config.address or os.environ.get('RAY_ADDRESS')} is not: {error}"
        ) from error
