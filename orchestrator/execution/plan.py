"""What a trial needs, how many fit, and what would starve: arithmetic, before anything is started.

A trial that waits for a CPU which its own data reading holds never ends, and Ray waits with it. So every
consumer is counted: trial processes, workers, and one CPU for each data set that is read while training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.node import Node
from orchestrator.config.experiment import ClusterConfig

DRIVER_CPUS = 0.01
"""Of the trial process that only watches a worker group."""


class PlanError(ValueError):
    """The request does not fit the cluster; the message holds the arithmetic."""


@dataclass(frozen=True)
class Plan:
    """How the trials of a sweep are placed."""

    workers: int
    use_gpu: bool
    cpus_per_worker: int
    gpus_per_worker: float
    max_concurrent: int
    reasons: tuple[str, ...]


def make_plan(
    config: ClusterConfig,
    nodes: Sequence[Node],
    *,
    streaming: bool,
    num_trials: int,
    max_concurrent: int | None,
) -> Plan:
    """Place `num_trials` trials on `nodes`.

    Raises:
        PlanError: not even one trial fits, or `max_concurrent` trials do not fit together.
    """
    num_cpus, num_gpus = sum(n.num_cpus for n in nodes), sum(n.num_gpus for n in nodes)
    have = f"the cluster has {num_cpus:g} CPUs and {num_gpus:g} GPUs on {len(nodes)} node(s)"
    use_gpu = num_gpus > 0 if config.use_gpu is None else config.use_gpu
    processes = max(1, config.workers)
    gpus = config.gpus_per_worker if use_gpu else 0.0
    readers = processes if streaming else 0
    cpus = processes * config.cpus_per_worker + readers + (DRIVER_CPUS if config.workers else 0.0)
    need = (
        f"a trial needs {cpus:g} CPUs ({processes} x {config.cpus_per_worker} for training"
        + (f" + {readers} for reading its stream" if streaming else "")
        + (f" + {DRIVER_CPUS:g} for watching its workers" if config.workers else "")
        + (f") and {processes} x {gpus:g} GPU" if use_gpu else ")")
    )
    if use_gpu and config.workers > 1 and gpus < 1:
        raise PlanError(
            "the workers of one trial must each have a GPU of their own (NCCL refuses two ranks on one), but got "
            f"cluster.workers={config.workers}, cluster.gpus_per_worker={gpus:g}. Set gpus_per_worker=1, or workers=0 "
            "to share GPUs between trials."
        )
    slots = [_slots(node, config.cpus_per_worker, gpus) for node in nodes]
    fit = int(sum(slots) // processes)
    fit = min(fit, int(num_cpus / cpus))
    if fit == 0:
        raise PlanError(
            f"one trial must fit the cluster, but {need}, and {have}. Lower cluster.workers or cluster.cpus_per_worker"
            + ", or add machines."
        )
    if max_concurrent is not None and max_concurrent > fit:
        raise PlanError(
            f"sweep.max_concurrent={max_concurrent} trials must fit together, but {need}, {have}, and so {fit} fit. "
            f"With more, trials would hold what others wait for. Set sweep.max_concurrent={fit} or less."
        )
    chosen = min(fit, num_trials, max_concurrent or fit)
    return Plan(
        workers=config.workers,
        use_gpu=use_gpu,
        cpus_per_worker=config.cpus_per_worker,
        gpus_per_worker=gpus,
        max_concurrent=chosen,
        reasons=(
            f"trials at a time: {chosen} ({need}; {have}: {fit} fit, {num_trials} to run)",
            _where(config.workers, use_gpu),
        ),
    )


def _slots(node: Node, cpus: float, gpus: float) -> int:
    by_cpu = node.num_cpus // cpus
    return int(min(by_cpu, node.num_gpus // gpus) if gpus else by_cpu)


def _where(workers: int, use_gpu: bool) -> str:
    device = "GPU" if use_gpu else "CPU"
    if workers:
        return f"each trial trains in {workers} worker processes on {device}s (cluster.workers={workers})"
    return f"each trial trains in one reused process on one {device} (cluster.workers=0: one device is enough)"
