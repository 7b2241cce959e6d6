"""The experiment: one complete, frozen configuration.

Each component owns its part (`datasets.config`, `trainables.config`); this file adds the parts that only the
orchestrator knows and composes the tree. `signature` is the identity of a result: it hashes what decides the
numbers and leaves out where they are computed.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import Field, model_validator

from datasets.config import DataConfig
from trainables.config import AugmentConfig, LossConfig, ModelConfig, OptimConfig, Settings, TrainConfig, WordsConfig


class PrunerConfig(Settings):
    """When a trial is stopped early; see `orchestrator.search.pruner`."""

    name: Literal["halving", "none"] = "halving"
    grace: int = Field(1, ge=1)
    """Epochs before the first rung."""
    reduction: int = Field(3, ge=2)
    """One in `reduction` trials of a group goes on at each rung; rungs at grace * reduction^k epochs."""
    group_by: tuple[str, ...] = ("model.head",)
    """Trials race only among those that agree in these keys."""


class SweepConfig(Settings):
    """The search of one space."""

    space: str = "coco"
    """Name of a file in search_spaces/ (without .yaml), or the path of one."""
    trials: int = Field(24, ge=1)
    sampler: Literal["tpe", "random"] = "tpe"
    startup_trials: int = Field(8, ge=0)
    """Trials drawn at random before TPE models the results."""
    seed: int = Field(0, ge=0)
    pruner: PrunerConfig = PrunerConfig()
    max_concurrent: int | None = Field(None, ge=1)
    """None: as many as the cluster fits."""


class ClusterConfig(Settings):
    """What a trial asks of the cluster: where it trains, not what.

    Rounding, batch statistics (each worker has its own) and dropout noise still depend on the number of workers.
    """

    address: str | None = None
    """None: the cluster this process belongs to (RAY_ADDRESS, a job), else a Ray of our own on this host."""
    workers: int = Field(0, ge=0)
    """0: train in the trial's own process; n: a Ray Train worker group of n processes over the nodes."""
    use_gpu: bool | None = None
    """None: where the cluster has GPUs."""
    cpus_per_worker: int = Field(1, ge=1)
    gpus_per_worker: float = Field(1.0, gt=0.0)
    """Only where GPUs are used; below 1 several trials share one."""
    num_cpus: int | None = Field(None, ge=1)
    """Logical CPUs of a Ray of our own; None: the cores of this machine."""
    object_store_gib: float | None = Field(None, gt=0.0)
    dashboard: bool = False
    """Start the dashboard of a Ray of our own (a cluster has its own); with worker groups it is started anyway."""
    worker_start_timeout_s: int = Field(900, ge=1)


class OutputConfig(Settings):
    """Where run folders live."""

    root: str = "~/ml-decoder-runs"


class Experiment(Settings):
    """The tree that a YAML file describes and override words change."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """The first half of a run folder's name, so nothing that a path or a URI would read otherwise."""
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    words: WordsConfig = WordsConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    sweep: SweepConfig = SweepConfig()
    cluster: ClusterConfig = ClusterConfig()
    output: OutputConfig = OutputConfig()

    @model_validator(mode="after")
    def _loss_fits(self) -> Experiment:
        loss, task = self.loss, self.model.task
        if loss.name == "cross_entropy" and task != "single_label":
            raise ValueError(
                "loss.name=cross_entropy knows one class an image, so it needs model.task=single_label, "
                f"but got model.task={task}. Multi-label losses: asymmetric, bce."
            )
        if loss.name == "cross_entropy" and self.words.num_mixed + self.words.num_random:
            raise ValueError(
                "Queries that training adds have labels of their own, which loss.name=cross_entropy has no place for. "
                "Drop words.num_mixed and words.num_random, or use loss.name=bce or asymmetric."
            )
        if loss.label_smoothing and loss.name != "cross_entropy":
            raise ValueError(
                f"loss.label_smoothing belongs to loss.name=cross_entropy, but got loss.name={loss.name}. Drop one."
            )
        if loss.target_threshold is not None and loss.name != "bce":
            raise ValueError(
                f"loss.target_threshold belongs to loss.name=bce, but got loss.name={loss.name}. Drop one."
            )
        return self

    @model_validator(mode="after")
    def _words_fit(self) -> Experiment:
        head, vectors = self.model.head, self.data.word_vectors
        if head == "word_decoder" and vectors is None:
            raise ValueError("model.head=word_decoder asks with words, but data.word_vectors names no file of them.")
        if self.data.unseen_list is not None and head != "word_decoder":
            raise ValueError(
                "Only words can ask for unseen classes: data.unseen_list needs model.head=word_decoder, "
                f"but got model.head={head}."
            )
        return self

    @model_validator(mode="after")
    def _rates_fit(self) -> Experiment:
        workers = max(1, self.cluster.workers)
        if self.train.batch_size_per_worker is None and self.train.batch_size < workers:
            raise ValueError(
                "train.batch_size >= cluster.workers must hold, but got "
                f"train.batch_size={self.train.batch_size}, cluster.workers={workers}. "
                "The batch is global; every worker needs a share of it."
            )
        return self


_UNDECIDING = (
    "name",
    "cluster",
    "output",
    "data.root",
    "data.feeding",
    "data.resident_share",
    "data.word_vectors",  # what is in the file counts, with the data
    "model.num_classes",  # with in_features: only checked against the data and the backbone, which decide
    "model.in_features",
    "model.weights",  # what is in the file counts, as weights_digest
    "sweep.space",  # its name or path; the content counts, as space_digest
    "sweep.trials",
    "sweep.max_concurrent",
    "train.checkpoint_interval_s",
    "train.keep_checkpoints",
)
"""What may change without changing a result. All else counts, so that a new setting is never forgotten."""


def signature(experiment: Experiment, *, data_digest: str, space_digest: str, weights_digest: str | None = None) -> str:
    """Eight hex characters that are equal exactly when two sweeps would give the same results.

    `data_digest` is the data manifest's, `space_digest` that of the resolved space, `weights_digest` that of the
    file `model.weights`.
    """
    tree: dict[str, Any] = experiment.model_dump(mode="json")
    for key in _UNDECIDING:
        *groups, leaf = key.split(".")
        node = tree
        for group in groups:
            node = node[group]
        del node[leaf]
    if experiment.train.batch_size_per_worker is not None:  # then the number of workers sets the global batch
        tree["workers"] = max(1, experiment.cluster.workers)
    decisive = {"tree": tree, "data": data_digest, "space": space_digest, "weights": weights_digest}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:8]
