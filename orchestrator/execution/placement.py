"""Connects to Ray and decides where trials run and how they are fed; each choice is printed with its reason."""

from __future__ import annotations

import os

from rich.console import Console

from cluster import runtime
from datasets import pipeline
from orchestrator.config.overrides import RequestError
from orchestrator.execution.plan import Plan, PlanError, make_plan
from orchestrator.execution.request import Request
from trainables.config import TrainConfig
from trainables.scaling import scaled_lr, uses_bf16

GIB = 2**30


def refuse_early(request: Request) -> None:
    """Refuse a request that does not fit before anything is written; on this machine, before Ray is started.

    Raises:
        RequestError: it does not fit, with the arithmetic.
    """
    config = request.experiment.cluster
    if config.address or os.environ.get("RAY_ADDRESS"):
        runtime.apply_environment(runtime.environment(config.worker_start_timeout_s))
        runtime.connect(config.address)
        nodes = runtime.nodes()
    else:
        nodes = [runtime.local_node(config.num_cpus, _store_bytes(request))]
    _plan(request, nodes)


def connect_and_plan(request: Request, console: Console) -> tuple[Plan, str]:
    """The plan, and `"resident"` or `"streaming"`.

    Raises:
        RequestError: the request does not fit; on this machine, before Ray is started.
    """
    experiment = request.experiment
    config = experiment.cluster
    runtime.apply_environment(runtime.environment(config.worker_start_timeout_s))
    where = runtime.connect(
        config.address,
        num_cpus=config.num_cpus,
        object_store_bytes=_store_bytes(request),
        dashboard=config.dashboard,
    )
    nodes = runtime.nodes()
    plan, feeding, why = _plan(request, nodes)
    console.print(f"ray: {where}")
    console.print(f"feeding: {feeding} ({why})")
    for reason in plan.reasons:
        console.print(reason)
    if len(nodes) > 1:
        console.print(
            f"{len(nodes)} nodes: each must see {request.root}, where shards and checkpoints lie", soft_wrap=True
        )
    console.print(_precision(experiment.train, plan))
    console.print(scaled_lr(experiment.optim, experiment.train, config.workers)[2])
    return plan, feeding


def _precision(train: TrainConfig, plan: Plan) -> str:
    bf16 = uses_bf16(train, use_gpu=plan.use_gpu)
    name = "bfloat16 autocast; loss, group projection and ranking in float32" if bf16 else "float32"
    device = f", trials run on {'GPUs' if plan.use_gpu else 'CPUs'}" if train.precision == "auto" else ""
    return f"precision: {name} (train.precision={train.precision}{device})"


def _plan(request: Request, nodes: list[runtime.Node]) -> tuple[Plan, str, str]:
    experiment = request.experiment
    # A node that holds no object store of its own cannot run trials either; the smallest one decides.
    store = min((node.object_store_bytes for node in nodes if node.object_store_bytes), default=0)
    feeding, why = pipeline.choose_feeding(experiment.data, request.source.num_images, store)
    try:
        plan = make_plan(
            experiment.cluster,
            nodes,
            streaming=feeding == "streaming",
            num_trials=experiment.sweep.trials,
            max_concurrent=experiment.sweep.max_concurrent,
        )
    except PlanError as error:
        raise RequestError(str(error)) from error
    if experiment.train.sync_batch_norm and not plan.use_gpu:
        raise RequestError(
            "train.sync_batch_norm needs GPUs, but trials run on CPUs here. Leave it out, or set cluster.use_gpu=true."
        )
    return plan, feeding, why


def _store_bytes(request: Request) -> int | None:
    gib = request.experiment.cluster.object_store_gib
    return None if gib is None else int(gib * GIB)
