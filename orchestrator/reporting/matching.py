"""Which completed trial may stand in a row of a table: pure, from configurations alone.

A trial that was shrunk (another size, another model, fewer epochs, a part of the images) does not count, and the
reason is kept. One that differs in how it was trained counts, and is marked with what differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from orchestrator.config.experiment import Experiment
from orchestrator.config.overrides import keys
from orchestrator.config.values import write
from orchestrator.reporting.results import Results, TrialResult
from orchestrator.reporting.rows import Benchmark

MAX_BAD_SHARE = 0.01
"""Of the validation images may be missing, as unreadable; a driver refuses more than this by default."""
WHERE = (
    "name",
    "cluster.",
    "output.",
    "sweep.",
    "data.root",
    "data.feeding",
    "data.resident_share",
    "model.num_classes",
    "model.in_features",
    "model.gradient_checkpointing",
    "train.eval_batch_size",
    "train.checkpoint_interval_s",
    "train.keep_checkpoints",
)
"""Keys, and groups of keys, that do not belong to a result. One forgotten here is marked, never hidden."""
WHAT = ("model.", "data.image_size", "data.train_split", "data.val_split", "data.unseen_list")
"""Keys that say what a row is about."""
HOW = ("model.dropout", "model.drop_path", "model.freeze")
"""Keys of the model that say how it was trained, like all other groups."""


@dataclass(frozen=True)
class Match:
    """What stands in a row."""

    trial: TrialResult | None = None
    differs: tuple[str, ...] = ()
    """Of `trial`, from the row's experiment, as `key=value` words."""
    not_counted: tuple[str, ...] = ()
    """Results under the experiment's name that do not belong in the row, and why."""


def match(experiment: Experiment, benchmark: Benchmark, results: Results) -> Match:
    """The best trial of a run of `experiment` that is what the row is about."""
    named = f"{experiment.name}-"
    reasons = [f"{item.folder.name}: {item.reason}" for item in results.left_out if item.folder.name.startswith(named)]
    counted: list[TrialResult] = []
    for trial in results.trials:
        if trial.experiment.name != experiment.name:
            continue
        wrong = list(_shrunk(experiment, benchmark, trial))
        if wrong:
            reasons.append(f"{trial.folder.name}, trial {trial.number}: {'; '.join(wrong)}")
        else:
            counted.append(trial)
    if not counted:
        return Match(not_counted=tuple(reasons))
    best = max(counted, key=lambda trial: (trial.score, trial.date))
    differs = (f"{key}={write(value)}" for key, value, _ in _differences(experiment, best.experiment))
    return Match(best, tuple(differs), tuple(reasons))


def _shrunk(experiment: Experiment, benchmark: Benchmark, trial: TrialResult) -> Iterator[str]:
    """Why a trial is not what the row is about; nothing when it is."""
    for key, value, asked in _differences(experiment, trial.experiment):
        if key.startswith(WHAT) and key not in HOW and not (key == "model.weights" and asked and value):
            yield f"{key}={write(value)}, the row's is {write(asked)}"
    epochs = trial.experiment.train.epochs
    if epochs < experiment.train.epochs:
        yield f"{epochs} of {experiment.train.epochs} epochs"
    fewest, most = benchmark.val_images
    if not (1 - MAX_BAD_SHARE) * fewest <= trial.num_evaluated <= most:
        yield f"judged on {trial.num_evaluated} images, {benchmark.name} has {fewest}" + (
            f" to {most}" if most > fewest else ""
        )


def _differences(experiment: Experiment, other: Experiment) -> Iterator[tuple[str, Any, Any]]:
    """Key, value in `other` and value in `experiment`, where they differ and it is part of a result."""
    for key in keys():
        if any(key == name or (name.endswith(".") and key.startswith(name)) for name in WHERE):
            continue
        asked, value = (_comparable(key, reduce(getattr, key.split("."), tree)) for tree in (experiment, other))
        if asked != value:
            yield key, value, asked


def _comparable(key: str, value: Any) -> Any:
    """The file of weights is known by its name: its folder is another on every machine.

    People rename files, so one of another name is marked rather than refused.
    """
    return Path(value).name if key == "model.weights" and value is not None else value
