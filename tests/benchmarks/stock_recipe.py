"""The stock peer of `sweep_cost`: the documented way to search over Ray Train runs with Ray Tune.

    python -m tests.benchmarks.stock_recipe EXPERIMENT.yaml RESULT.json --trials N

A Tuner with OptunaSearch runs a function that starts a TorchTrainer with one worker, whose reports come back
through TuneReportCallback. The data is a Ray Data set, decoded and materialized once in the driver. Everything
else is Ray's default, except that trials run one at a time: by the defaults a trial and its worker hold one CPU
each, so two trials on two cores wait for each other for ever. With 0.01 CPU for the trial itself two run at a
time; on two cores that took 24 s per trial instead of 28. No checkpoints are written.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import ray.train
from ray import tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search.optuna import OptunaSearch

from datasets import order, shards
from orchestrator.config.experiment import Experiment
from tests.benchmarks.plain_loop import Batch, decode, read_workload, train_one

REPORTED = ["epoch", "mAP", "num_evaluated"]


def decode_batch(batch: dict[str, np.ndarray], image_size: int, num_classes: int) -> dict[str, np.ndarray]:
    """Rows of shards -> images, multi-hot labels and ids."""
    return {
        "image": np.stack([decode(data, image_size) for data in batch["image"]]),
        "labels": shards.multi_hot([list(labels) for labels in batch["labels"]], num_classes),
        "image_id": batch["image_id"],
    }


def materialized(folder: Path, image_size: int) -> ray.data.Dataset:
    """A split, read and decoded once."""
    num_classes = len(shards.read_manifest(folder).classes)
    rows = ray.data.read_parquet(str(folder), file_extensions=["parquet"])
    kwargs = {"image_size": image_size, "num_classes": num_classes}
    return rows.map_batches(decode_batch, fn_kwargs=kwargs).materialize()  # type: ignore[arg-type]


def train_loop(config: dict[str, Any]) -> None:
    """What the worker of a trial does."""
    experiment: Experiment = config["experiment"]
    train, val = ray.train.get_dataset_shard("train"), ray.train.get_dataset_shard("val")
    batch_size = experiment.train.batch_size

    def train_batches(epoch: int) -> Iterator[Batch]:
        yield from train.iter_torch_batches(
            batch_size=batch_size,
            local_shuffle_buffer_size=config["num_rows"],
            local_shuffle_seed=experiment.train.seed + epoch,
        )

    def val_batches() -> Iterator[Batch]:
        yield from val.iter_torch_batches(batch_size=experiment.train.eval_batch_size)

    train_one(
        experiment,
        config["overrides"],
        num_batches=order.num_batches(config["num_rows"], batch_size),
        train_batches=train_batches,
        val_batches=val_batches,
        val_ids=config["val_ids"],
        num_classes=config["num_classes"],
        report=ray.train.report,
    )


def overrides_of(config: dict[str, Any]) -> dict[str, Any]:
    """A flat search space asks every parameter; pooling has no queries."""
    asked = {key: value for key, value in config.items() if "." in key}
    if asked["model.head"] == "gap":
        del asked["model.query_num"]
    return asked


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the first points of a space by the recipe of Ray's manual.")
    parser.add_argument("experiment")
    parser.add_argument("result", type=Path)
    parser.add_argument("--trials", type=int, required=True)
    arguments = parser.parse_args()
    experiment, space, folders = read_workload(arguments.experiment)
    folder = arguments.result.parent / "stock_results"
    ray.init()
    train, val = (materialized(split, experiment.data.image_size) for split in folders)
    val_ids, labels = shards.index(shards.read_manifest(folders[1]), folders[1])
    shared = {
        "experiment": experiment,
        "num_rows": train.count(),
        "val_ids": val_ids,
        "num_classes": labels.shape[1],
    }

    def run_trial(config: dict[str, Any], train: ray.data.Dataset, val: ray.data.Dataset) -> None:
        TorchTrainer(
            train_loop,
            train_loop_config={**shared, "overrides": overrides_of(config)},
            scaling_config=ray.train.ScalingConfig(num_workers=1),
            datasets={"train": train, "val": val},
            run_config=ray.train.RunConfig(
                name=f"trial-{tune.get_context().get_trial_id()}",
                storage_path=str(folder),
                callbacks=[TuneReportCallback()],  # type: ignore[list-item]
            ),
        ).fit()

    points = [{"model.query_num": shared["num_classes"], **point} for point in space.points()]
    tuner = tune.Tuner(
        tune.with_parameters(run_trial, train=train, val=val),
        param_space={
            "model.head": tune.choice(["ml_decoder", "gap"]),
            "model.backbone": tune.choice(sorted({point["model.backbone"] for point in points})),
            "model.query_num": tune.choice(sorted({point["model.query_num"] for point in points})),
            "optim.lr": tune.loguniform(1e-4, 1e-1),
        },
        tune_config=tune.TuneConfig(
            metric="mAP",
            mode="max",
            search_alg=OptunaSearch(points_to_evaluate=points[: arguments.trials]),
            num_samples=arguments.trials,
            max_concurrent_trials=1,
        ),
        run_config=tune.RunConfig(name="tune", storage_path=str(folder)),
    )
    started = time.monotonic()
    results = tuner.fit()
    seconds = time.monotonic() - started
    trained = [
        {
            "overrides": overrides_of(result.config or {}),
            "epochs": result.metrics_dataframe[REPORTED].to_dict("records"),  # type: ignore[index]
        }
        for result in (results[number] for number in range(len(results)))
    ]
    arguments.result.write_text(json.dumps({"trained": trained, "seconds_in_trials": seconds}))


if __name__ == "__main__":
    main()
