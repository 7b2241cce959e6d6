"""One trial, from an experiment to TorchTrainer.fit; runs in a process of the cluster.

The driver imports this module to send it, so what needs torch is imported where a trial runs: that saves the
driver seconds before Ray starts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import ray.train
import ray.tune
from ray.train.v2.api.config import FailureConfig
from ray.tune.integration.ray_train import TuneReportCallback

from cluster.runtime import apply_environment
from orchestrator.config.experiment import Experiment
from orchestrator.config.overrides import with_overrides
from orchestrator.execution.plan import Plan

if TYPE_CHECKING:
    from trainables.worker import Job

DRAIN_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class TrialContext:
    """What all trials of a sweep share."""

    experiment: Experiment
    plan: Plan
    feed: Any
    """datasets.pipeline.Feed"""
    run_folder: str
    words: np.ndarray | None = None
    """Word vectors (K, W) of the classes, for the word decoder."""
    unseen: tuple[int, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    """`cluster.runtime.environment`, for the process of the trial: on a cluster it is not the driver's child."""


def trial_folder(run_folder: str, number: int) -> str:
    """Where a trial keeps its metrics and checkpoints: a function of its number, so a resumed one finds them."""
    return f"{run_folder}/trials/{number:04d}"


def make_job(context: TrialContext, number: int, overrides: dict[str, Any]) -> Job:
    """The sampled experiment as a worker needs it."""
    from trainables.inputs import Vocabulary
    from trainables.worker import Job

    experiment = with_overrides(context.experiment, overrides)
    num_classes = context.feed.train.labels.shape[1]
    vocabulary = None
    if experiment.model.head == "word_decoder" and context.words is not None:
        vocabulary = Vocabulary(context.words, context.unseen)
    return Job(
        model=experiment.model.model_copy(update={"num_classes": num_classes}),
        loss=experiment.loss,
        optim=experiment.optim,
        train=experiment.train,
        augment=experiment.augment,
        words=experiment.words,
        mean=experiment.data.mean,
        std=experiment.data.std,
        feed=context.feed,
        folder=trial_folder(context.run_folder, number),
        use_gpu=context.plan.use_gpu,
        num_threads=context.plan.cpus_per_worker,
        vocabulary=vocabulary,
    )


def run_trial(config: dict[str, Any], *, context: TrialContext) -> None:
    """Tune's trainable: `config` is what the study suggested."""
    apply_environment(context.environment)
    from ray.train.torch import TorchTrainer

    from trainables.worker import train_loop

    job, plan = make_job(context, config["number"], config["overrides"]), context.plan
    if plan.workers == 0:  # Train's local mode: this process is the worker, and reports to Tune itself
        TorchTrainer(
            train_loop,
            train_loop_config={"job": job, "report": ray.tune.report},
            scaling_config=ray.train.ScalingConfig(num_workers=0, use_gpu=plan.use_gpu),
        ).fit()
        return
    to_tune = TuneReportCallback()
    resources = {"CPU": plan.cpus_per_worker, **({"GPU": plan.gpus_per_worker} if plan.use_gpu else {})}
    TorchTrainer(
        train_loop,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=plan.workers, use_gpu=plan.use_gpu, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=f"trial-{config['number']:04d}-{time.time_ns()}",  # our checkpoints resume it, not Train's
            storage_path=f"{context.run_folder}/train",
            # A group that is not placed within worker_start_timeout_s fails its trial; by default Train tries for ever.
            failure_config=FailureConfig(controller_failure_limit=0),
            callbacks=[to_tune],  # type: ignore[list-item]  # its signature names another of Ray's bases
        ),
    ).fit()
    _drain(to_tune)


def _drain(callback: TuneReportCallback) -> None:
    """Wait until Tune has taken the last report.

    A trial function that returns while one is still on its way makes its own main thread wait for itself.
    """
    deadline = time.monotonic() + DRAIN_TIMEOUT_S
    while not callback._training_actor_item_queue.empty() and time.monotonic() < deadline:
        time.sleep(0.05)
