"""trainables.worker: a worker group trains what one process trains, and judges every image once.

Real worker groups of Ray Train (gloo, CPU). A group takes most of its time to start, so each trains several jobs.
The backbones are without batch statistics and nothing is dropped out: rounding is all that may differ.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer

from datasets import pipeline, shards
from trainables import worker
from trainables.classifier import build
from trainables.config import AugmentConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig, WordsConfig
from trainables.inputs import Vocabulary
from trainables.worker import Job, train_loop

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's processes cannot import a test

NUM_VAL = 101  # neither 2 nor 3 divides it
BATCH = 43  # nor this, so the workers' shares of a batch differ in size
Epochs = list[dict[str, Any]]
"""The metrics of a job, epoch by epoch."""


@pytest.fixture(scope="module")
def jobs(ray_session: None, digits_shards: Path) -> dict[str, Job]:
    train, val = (
        pipeline.open_split(str(digits_shards / split), shards.read_manifest(digits_shards / split))
        for split in ("train", "val")
    )
    decoder = Job(
        model=ModelConfig(
            backbone="test_vit",
            num_classes=10,
            query_num=5,
            embed_dim=32,
            num_heads=4,
            feedforward_dim=32,
            dropout=0.0,
        ),
        loss=LossConfig(),
        optim=OptimConfig(lr=1e-3, weight_decay=1e-2),
        train=TrainConfig(epochs=2, batch_size=BATCH, ema_decay=0.9, checkpoint_interval_s=0, keep_checkpoints=9),
        augment=AugmentConfig(),
        words=WordsConfig(),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        feed=pipeline.make_resident(train, val, 32),
        folder="",
        use_gpu=False,
        num_threads=1,
    )
    once = decoder.train.model_copy(update={"epochs": 1})
    return {
        "decoder": decoder,
        "pooling": replace(
            decoder,
            model=decoder.model.model_copy(update={"backbone": "test_convnext", "head": "gap", "query_num": None}),
            # Above this at first and below it later: Adam alone would not feel a gradient of the wrong size.
            optim=decoder.optim.model_copy(update={"clip_norm": 60.0}),
        ),
        "resident": replace(decoder, train=once),
        "streaming": replace(decoder, feed=pipeline.Feed(train, val, 32), train=once),
        # A mean instead of the sum, under an optimizer whose steps are as long as the gradient; half the labels unseen.
        "words": replace(
            decoder,
            model=decoder.model.model_copy(update={"head": "word_decoder", "query_num": None}),
            loss=LossConfig(reduction="mean"),
            optim=OptimConfig(name="sgd", lr=0.3, schedule="constant", weight_decay=0.0),
            vocabulary=Vocabulary(np.random.default_rng(0).normal(size=(10, 6)).astype(np.float32), (1, 3, 5, 7, 9)),
        ),
        # Too small a rate to change a weight: what is judged is the model as it was built.
        "untrained": replace(decoder, optim=OptimConfig(lr=1e-30), train=once),
    }


@pytest.fixture(scope="module")
def alone(jobs: dict[str, Job], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Epochs]:
    """All jobs at `workers: 0`, in the process of a task, as in the process of a trial."""

    def train(job: Job) -> Epochs:
        reports: Epochs = []
        TorchTrainer(
            train_loop,
            train_loop_config={"job": job, "report": reports.append},
            scaling_config=ray.train.ScalingConfig(num_workers=0),
        ).fit()
        return reports

    folder = tmp_path_factory.mktemp("alone")
    placed = {name: replace(job, folder=str(folder / name)) for name, job in jobs.items()}
    # One after the other: streaming reads need a CPU of their own.
    return {name: ray.get(ray.remote(num_cpus=1)(train).remote(job), timeout=100) for name, job in placed.items()}


@pytest.fixture(scope="module")
def two(jobs: dict[str, Job], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Epochs]:
    """All jobs in a group of two workers."""
    return in_a_group(2, jobs, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def three(jobs: dict[str, Job], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Epochs]:
    """In a group of three workers; val has two row groups, so one worker judges nothing."""
    return in_a_group(3, {"untrained": jobs["untrained"]}, tmp_path_factory.mktemp("three"))


def in_a_group(workers: int, jobs: dict[str, Job], folder: Path) -> dict[str, Epochs]:
    """Train the jobs one after the other in one worker group; what the checkpoints say of each epoch."""

    def train_all(config: dict[str, Any]) -> None:
        for job in config["jobs"]:
            train_loop({"job": job})

    placed = {name: replace(job, folder=str(folder / name)) for name, job in jobs.items()}
    TorchTrainer(
        train_all,
        train_loop_config={"jobs": list(placed.values())},
        scaling_config=ray.train.ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(
            name="group",
            storage_path=str(folder / "train"),
            failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=0),  # type: ignore[call-arg]
        ),
    ).fit()
    return {
        name: [
            json.loads(path.read_text())["metrics"]
            for path in sorted(Path(job.folder).glob("checkpoints/epoch-*/state.json"))
        ]
        for name, job in placed.items()
    }


def values(epochs: Epochs, name: str) -> list[Any]:
    return [metrics[name] for metrics in epochs]


@pytest.mark.parametrize("job", ["decoder", "pooling", "words", "resident", "streaming", "untrained"])
def test_two_workers_have_the_losses_of_one_process(alone: dict[str, Epochs], two: dict[str, Epochs], job: str) -> None:
    expected = values(alone[job], "loss")
    assert len(expected) == (2 if job in ("decoder", "pooling", "words") else 1)
    assert values(two[job], "loss") == pytest.approx(expected, rel=1e-4)


def test_an_epoch_changes_the_loss_by_far_more_than_that(alone: dict[str, Epochs]) -> None:
    for job in ("decoder", "pooling", "words"):
        first, second = values(alone[job], "loss")
        assert abs(second - first) > 0.03 * first


def test_three_workers_have_the_loss_of_one_process(alone: dict[str, Epochs], three: dict[str, Epochs]) -> None:
    assert values(three["untrained"], "loss") == pytest.approx(values(alone["untrained"], "loss"), rel=1e-4)


def test_the_same_weights_have_the_same_map_under_any_number_of_workers(
    alone: dict[str, Epochs], two: dict[str, Epochs], three: dict[str, Epochs]
) -> None:
    expected = values(alone["untrained"], "mAP")
    assert 0.0 < expected[0] < 1.0
    assert values(two["untrained"], "mAP") == pytest.approx(expected, abs=1e-6)
    assert values(three["untrained"], "mAP") == pytest.approx(expected, abs=1e-6)


def test_every_validation_image_is_judged_under_any_number_of_workers(
    alone: dict[str, Epochs], two: dict[str, Epochs], three: dict[str, Epochs]
) -> None:
    for world in (alone, two, three):
        for epochs in world.values():
            assert epochs
            assert set(values(epochs, "num_evaluated")) == {NUM_VAL}


def test_seen_and_unseen_classes_are_judged_apart_under_any_number_of_workers(
    alone: dict[str, Epochs], two: dict[str, Epochs]
) -> None:
    for name in ("mAP", "mAP_seen", "mAP_unseen"):
        assert values(two["words"], name) == pytest.approx(values(alone["words"], name), abs=0.02)
    last = alone["words"][-1]
    assert last["mAP"] == pytest.approx((last["mAP_seen"] + last["mAP_unseen"]) / 2)


def test_both_feedings_train_the_same_model(alone: dict[str, Epochs]) -> None:
    for name in ("loss", "mAP"):
        assert values(alone["streaming"], name) == values(alone["resident"], name)


def test_the_report_of_an_epoch_is_complete(two: dict[str, Epochs], alone: dict[str, Epochs]) -> None:
    for epochs in (two["decoder"], alone["decoder"]):
        assert values(epochs, "epoch") == [1, 2]
        for metrics in epochs:
            assert metrics.keys() >= {"loss", "lr", "mAP", "best_mAP", "best_epoch", "images_per_s", "seconds"}
    assert values(two["decoder"], "lr") == values(alone["decoder"], "lr")


@pytest.mark.parametrize("name", ["lcnet_050", "efficientnet_b0", "resnet18"])
def test_synchronised_norms_keep_what_the_backbone_computes(name: str) -> None:
    # PyTorch's own conversion would drop the activations inside timm's norms.
    torch.manual_seed(0)
    model = build(ModelConfig(backbone=name, num_classes=3, head="gap"), image_size=64).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(worker.convert_sync_batchnorm(model).eval()(images), expected)
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules())
