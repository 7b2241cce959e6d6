"""The plain peer of `sweep_cost`: an Optuna + PyTorch loop in one process, the decoded images in two arrays.

    python -m tests.benchmarks.plain_loop EXPERIMENT.yaml RESULT.json --threads N

It trains the same configurations by the same arithmetic (`trainables.fit`), in the same order of images, and
leaves out what a loop in one process leaves out: Ray, checkpoints, records on disk.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from torch import nn

from datasets import order, shards, transforms
from orchestrator.config.experiment import Experiment
from orchestrator.config.overrides import load, with_overrides
from search_spaces import space as spaces
from search_spaces.space import ResolvedSpace
from trainables import evaluation, fit, metrics
from trainables.classifier import build
from trainables.groups import distinct_query_nums
from trainables.losses import build_loss

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Arrays:
    """One split, decoded: images (N, 3, S, S) uint8, labels (N, K) uint8, image ids (N,) int64."""

    images: np.ndarray
    labels: np.ndarray
    image_ids: np.ndarray

    def take(self, rows: np.ndarray) -> Batch:
        return {"image": self.images[rows], "labels": self.labels[rows], "image_id": self.image_ids[rows]}


def decode(data: bytes, image_size: int) -> np.ndarray:
    """An image file -> (3, S, S) uint8, by the decoder that all sides share."""
    return transforms.to_chw(transforms.resize(transforms.decode(data), image_size))


def read_split(folder: Path, image_size: int) -> Arrays:
    """Decode a whole split of shards."""
    manifest = shards.read_manifest(folder)
    image_ids, labels = shards.index(manifest, folder)
    images = np.empty((len(image_ids), 3, image_size, image_size), np.uint8)
    row = 0
    for shard in manifest.shards:
        for group in range(len(shards.group_rows(folder, shard.file))):
            for data in shards.read_rows(folder, shard.file, group, columns=["image"])["image"]:
                images[row] = decode(data, image_size)
                row += 1
    return Arrays(images, labels, image_ids)


def read_workload(experiment_file: str) -> tuple[Experiment, ResolvedSpace, tuple[Path, Path]]:
    """The experiment, its space, and the folders of its train and val shards."""
    experiment = load(experiment_file)
    data = experiment.data
    folders = Path(str(data.root)) / data.train_split, Path(str(data.root)) / data.val_split
    num_classes = len(shards.read_manifest(folders[0], verify=False).classes)
    return experiment, spaces.read(experiment.sweep.space).resolve(num_classes, distinct_query_nums), folders


def train_one(
    experiment: Experiment,
    overrides: Mapping[str, Any],
    *,
    num_batches: int,
    train_batches: Callable[[int], Iterable[Batch]],
    val_batches: Callable[[], Iterable[Batch]],
    val_ids: np.ndarray,
    num_classes: int,
    report: Callable[[fit.Metrics], None],
) -> None:
    """Train one configuration on the CPU, as a worker of ours would, without checkpoints."""
    chosen = with_overrides(experiment, overrides)
    mean = torch.tensor(chosen.data.mean).view(1, 3, 1, 1) * 255
    inverse_std = 1 / (torch.tensor(chosen.data.std).view(1, 3, 1, 1) * 255)

    def prepare(image: Any) -> torch.Tensor:
        return (torch.as_tensor(image) - mean) * inverse_std

    def evaluate(model: nn.Module) -> fit.Metrics:
        scored = evaluation.merge([evaluation.score(model, val_batches(), prepare, num_classes)], val_ids)
        score = metrics.mean_average_precision(scored.logits, scored.labels)
        return {"mAP": score, "num_evaluated": len(scored.image_ids)}

    torch.manual_seed(chosen.train.seed)
    model = build(chosen.model.model_copy(update={"num_classes": num_classes}), image_size=chosen.data.image_size)
    fit.fit(
        model,
        build_loss(chosen.loss),
        optim_config=chosen.optim,
        train=chosen.train,
        num_batches=num_batches,
        train_batches=train_batches,
        evaluate=evaluate,
        report=report,
        device=fit.Device(torch.device("cpu"), prepare),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the points of a space one after the other in this process.")
    parser.add_argument("experiment")
    parser.add_argument("result", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    experiment, space, folders = read_workload(arguments.experiment)
    train, val = (read_split(folder, experiment.data.image_size) for folder in folders)
    num_rows, batch_size, seed = len(train.labels), experiment.train.batch_size, experiment.train.seed
    trained: list[dict[str, Any]] = []

    def train_batches(epoch: int) -> Iterator[Batch]:
        rows = order.epoch_order([num_rows], seed=seed, epoch=epoch, window=num_rows)
        return (train.take(batch) for batch in order.batches(rows, batch_size))

    def val_batches() -> Iterator[Batch]:
        rows, size = np.arange(len(val.labels)), experiment.train.eval_batch_size
        return (val.take(rows[start : start + size]) for start in range(0, len(rows), size))

    def objective(trial: optuna.Trial) -> float:
        overrides, epochs = space.suggest(trial), []

        def report(result: fit.Metrics) -> None:
            trial.report(result["mAP"], result["epoch"])
            epochs.append({key: result[key] for key in ("epoch", "mAP", "num_evaluated")})

        train_one(
            experiment,
            overrides,
            num_batches=order.num_batches(num_rows, batch_size),
            train_batches=train_batches,
            val_batches=val_batches,
            val_ids=val.image_ids,
            num_classes=val.labels.shape[1],
            report=report,
        )
        trained.append({"overrides": overrides, "epochs": epochs})
        return max(epoch["mAP"] for epoch in epochs)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.NopPruner())
    for point in space.points():
        study.enqueue_trial(point)
    started = time.monotonic()
    study.optimize(objective, n_trials=experiment.sweep.trials)
    seconds = time.monotonic() - started
    arguments.result.write_text(json.dumps({"trained": trained, "seconds_in_trials": seconds}))


if __name__ == "__main__":
    main()
