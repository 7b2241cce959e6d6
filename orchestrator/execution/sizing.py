"""Whether a request fits given machines, and what was chosen for it and why; pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.node import Node
from datasets import feeding
from datasets.schema import DataError
from orchestrator.config.experiment import Experiment
from orchestrator.config.overrides import RequestError
from orchestrator.execution.plan import Plan, PlanError, make_plan
from trainables.config import TrainConfig
from trainables.scaling import scaled_lr, uses_bf16

GIB = 2**30


@dataclass(frozen=True)
class Placement:
    """Where trials run, how they are fed, and the sentences that say why."""

    plan: Plan
    feeding: str
    reasons: tuple[str, ...]


def place(experiment: Experiment, num_images: int, nodes: Sequence[Node]) -> Placement:
    """Place an experiment with `num_images` train and val images on `nodes`.

    Raises:
        RequestError: it does not fit, with the arithmetic.
    """
    # The smallest store decides, since any node may run a trial; a node without one runs none.
    store = min((node.object_store_bytes for node in nodes if node.object_store_bytes), default=0)
    try:
        chosen, why = feeding.choose_feeding(experiment.data, num_images, store)
        plan = make_plan(
            experiment.cluster,
            nodes,
            streaming=chosen == "streaming",
            num_trials=experiment.sweep.trials,
            max_concurrent=experiment.sweep.max_concurrent,
        )
    except (DataError, PlanError) as error:
        raise RequestError(str(error)) from error
    if experiment.train.sync_batch_norm and not plan.use_gpu:
        raise RequestError(
            "train.sync_batch_norm needs GPUs, but trials run on CPUs here. Leave it out, or set cluster.use_gpu=true."
        )
    return Placement(
        plan,
        chosen,
        (
            f"feeding: {chosen} ({why})",
            *plan.reasons,
            _precision(experiment.train, plan),
            scaled_lr(experiment.optim, experiment.train, experiment.cluster.workers)[2],
        ),
    )


def store_bytes(experiment: Experiment) -> int | None:
    """The object store asked for, for a Ray of our own."""
    gib = experiment.cluster.object_store_gib
    return None if gib is None else int(gib * GIB)


def _precision(train: TrainConfig, plan: Plan) -> str:
    if not uses_bf16(train, use_gpu=plan.use_gpu):
        name = "float32"
    elif train.precision == "auto":
        name = "bfloat16 autocast on GPUs that have it in hardware"
    else:
        name = "bfloat16 autocast"
    where = f", trials run on {'GPUs' if plan.use_gpu else 'CPUs'}" if train.precision == "auto" else ""
    return f"precision: {name} (train.precision={train.precision}{where}); loss and ranking always in float32"
