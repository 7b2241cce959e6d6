"""What can be wrong between an experiment and its data: a sentence each, with the way out; free of Ray and torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from orchestrator.config.experiment import Experiment
from trainables.groups import distinct_query_nums
from trainables.scaling import scaled_lr


def with_weights(experiment: Experiment, problems: list[str]) -> Experiment:
    """`model.weights` as an absolute path: trials run in other directories."""
    if experiment.model.weights is None:
        return experiment
    path = Path(experiment.model.weights).expanduser().resolve()
    if not path.is_file():
        problems.append(f"model.weights must be a file, but there is none at {path}. Correct model.weights.")
    model = experiment.model.model_copy(update={"weights": str(path)})
    return experiment.model_copy(update={"model": model})


def batch_problems(experiment: Experiment, num_train: int) -> list[str]:
    """An epoch's rows are dealt evenly to its batches; each worker needs at least one row of each."""
    workers = max(1, experiment.cluster.workers)
    batch_size = scaled_lr(experiment.optim, experiment.train, workers)[0]
    smallest = num_train // -(-num_train // batch_size) if num_train else 0
    if smallest >= workers:
        return []
    return [
        f"every worker needs an image of every batch, but the smallest of {num_train} images in batches of at most "
        f"{batch_size} has {smallest}, and cluster.workers={workers}. Lower cluster.workers or raise train.batch_size."
    ]


def class_problems(experiment: Experiment, num_classes: int | None) -> list[str]:
    found: list[str] = []
    model = experiment.model
    if num_classes is None:
        return found
    if model.num_classes not in (None, num_classes):
        found.append(
            f"model.num_classes must be that of the data, but got model.num_classes={model.num_classes} and "
            f"{num_classes} classes in the data. Leave it out: it is taken from the data."
        )
    if model.query_num is not None and model.query_num > num_classes:
        found.append(
            f"query_num <= num_classes must hold, but got model.query_num={model.query_num}, "
            f"num_classes={num_classes}. Lower model.query_num; distinct sizes: "
            f"{', '.join(map(str, distinct_query_nums(num_classes)))}."
        )
    return found


def label_problems(experiment: Experiment, labels: dict[str, np.ndarray]) -> list[str]:
    """`labels`: split -> (N, K) 0/1. mAP needs a positive, and a single-label task one class an image."""
    if not labels[experiment.data.val_split].any():
        return ["mAP needs a positive example, but no validation image carries a label. Check data.val_split."]
    found = []
    for split, labels_NK in labels.items():
        wrong = int((labels_NK.sum(axis=1) != 1).sum())
        if wrong and experiment.model.task == "single_label":
            found.append(
                f"model.task=single_label needs exactly one class an image, but {wrong} of {len(labels_NK)} in {split} "
                "have none or several. Set model.task=multi_label."
            )
    return found
