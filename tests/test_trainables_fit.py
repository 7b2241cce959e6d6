"""`fit` on a tiny model: what it promises about steps, resuming, and stopping."""

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from trainables.checkpoint import Snapshot
from trainables.checkpoint_files import Counters
from trainables.config import OptimConfig, TrainConfig
from trainables.fit import Device, Diverged, World, fit

IMAGES, CLASSES, BATCH = 24, 5, 8
DATA = np.random.default_rng(0)
PIXELS = DATA.integers(0, 255, (IMAGES, 3, 8, 8), dtype=np.uint8)
LABELS = (DATA.random((IMAGES, CLASSES)) < 0.4).astype(np.uint8)
DEVICE = Device(torch.device("cpu"), lambda image: torch.from_numpy(image).float() / 255, nullcontext)
OPTIM = OptimConfig(lr=1e-2)
TRAIN = TrainConfig(epochs=6, batch_size=BATCH, ema_decay=0.9, checkpoint_interval_s=0)


def batches(epoch: int) -> Iterator[dict]:
    rows = np.random.default_rng(epoch).permutation(IMAGES)
    for batch in np.array_split(rows, IMAGES // BATCH):
        yield {"image": PIXELS[batch], "labels": LABELS[batch], "image_id": batch}


class SumLoss(nn.Module):
    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(144, CLASSES)
    )


def judge(judged: nn.Module) -> dict:
    judged.eval()
    with torch.no_grad():
        logits = judged(torch.from_numpy(PIXELS).float() / 255)
    return {"mAP": float(torch.sigmoid(logits).mean())}


def run(train: TrainConfig = TRAIN, **changes: object) -> tuple[nn.Module, list[dict], list[Snapshot], Counters]:
    trained, reports, snapshots = model(), [], []
    arguments: dict = {
        "optim_config": OPTIM,
        "train": train,
        "num_batches": IMAGES // BATCH,
        "train_batches": batches,
        "evaluate": judge,
        "report": reports.append,
        "save": snapshots.append,
        "device": DEVICE,
    }
    counters = fit(trained, SumLoss(), **(arguments | changes))
    return trained, reports, snapshots, counters


def assert_equal_snapshots(first: Snapshot, second: Snapshot) -> None:
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[name]), name
    assert first.best.keys() == second.best.keys()
    assert all(torch.equal(tensor, second.best[name]) for name, tensor in first.best.items())
    ignore = {"seconds", "images_per_s"}
    assert {k: v for k, v in first.counters.metrics.items() if k not in ignore} == {
        k: v for k, v in second.counters.metrics.items() if k not in ignore
    }
    assert (first.counters.best_score, first.counters.best_epoch, first.counters.step) == (
        second.counters.best_score,
        second.counters.best_epoch,
        second.counters.step,
    )


def test_reports_and_snapshots_once_an_epoch() -> None:
    _, reports, snapshots, counters = run()
    assert [metrics["epoch"] for metrics in reports] == [1, 2, 3, 4, 5, 6]
    assert [snapshot.counters.epoch for snapshot in snapshots] == [1, 2, 3, 4, 5, 6]
    assert counters.step == 18
    assert reports[-1]["loss"] < reports[0]["loss"]
    assert reports[-1]["best_mAP"] == max(metrics["mAP"] for metrics in reports)


@pytest.mark.parametrize("stopped_after", [1, 3, 5])
def test_a_resumed_run_is_bit_equal_to_an_undisturbed_one(stopped_after: int) -> None:
    undisturbed, _, snapshots, _ = run()
    torch.manual_seed(999)  # whatever the new process has drawn before
    resumed, reports, later, _ = run(resume=snapshots[stopped_after - 1])
    assert [metrics["epoch"] for metrics in reports] == list(range(stopped_after, 7))  # the last one is repeated
    assert_equal_snapshots(later[-1], snapshots[-1])
    for name, tensor in undisturbed.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name])


def test_a_different_seed_gives_different_weights() -> None:
    """The twin of the test above: equality there is not for want of randomness."""
    _, _, first, _ = run()
    _, _, second, _ = run(TRAIN.model_copy(update={"seed": 1}))
    assert not torch.equal(first[-1].tensors["model/5.weight"], second[-1].tensors["model/5.weight"])


def test_a_finished_run_trains_no_further_but_reports_its_end() -> None:
    _, _, snapshots, _ = run()
    _, reports, later, counters = run(resume=snapshots[-1])
    assert [metrics["epoch"] for metrics in reports] == [6]
    assert later == [] and counters.epoch == 6


def test_should_stop_ends_within_a_step() -> None:
    polls = iter([False] * 4 + [True])
    _, reports, _, counters = run(should_stop=lambda: next(polls))
    assert len(reports) == 1 and counters.epoch == 1  # the fifth step would be in the second epoch


def test_snapshots_are_spaced_in_time_but_the_last_epoch_has_one() -> None:
    _, _, snapshots, _ = run(TRAIN.model_copy(update={"checkpoint_interval_s": 3600.0}))
    assert [snapshot.counters.epoch for snapshot in snapshots] == [6]


def test_two_half_batches_give_the_gradient_of_the_whole() -> None:
    """DDP averages gradients; each worker's sum is scaled by the world's size to make up for it."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))
    whole = [p.clone() for p in linear.parameters()]
    fit_args: dict = {
        "optim_config": OptimConfig(lr=1e-2, schedule="constant"),
        "train": TrainConfig(epochs=1, ema_decay=0),
        "num_batches": 1,
        "evaluate": judge,
        "report": lambda metrics: None,
        "device": DEVICE,
    }

    def gradients(rows: slice, world: World) -> list[torch.Tensor]:
        with torch.no_grad():
            for parameter, start in zip(linear.parameters(), whole, strict=True):
                parameter.copy_(start)
        batch = {"image": PIXELS[rows], "labels": LABELS[rows]}
        fit(linear, SumLoss(), train_batches=lambda epoch: [batch], world=world, **fit_args)
        return [p.grad.clone() for p in linear.parameters() if p.grad is not None]

    expected = gradients(slice(0, 9), World())
    halves = [gradients(rows, World(size=2)) for rows in (slice(0, 5), slice(5, 9))]
    for one, two, both in zip(*halves, expected, strict=True):
        torch.testing.assert_close((one + two) / 2, both)


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_rate() -> None:
    class Broken(nn.Module):
        def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return logits.sum() * float("nan")

    with pytest.raises(Diverged, match=r"finite.*Lower optim\.lr"):
        fit(
            model(),
            Broken(),
            optim_config=OPTIM,
            train=TRAIN,
            num_batches=3,
            train_batches=batches,
            evaluate=judge,
            report=lambda metrics: None,
            device=DEVICE,
        )


def test_the_named_objective_decides_which_weights_are_best() -> None:
    scores = iter([(0.9, 0.1), (0.5, 0.7), (0.1, 0.3)])

    def judge_twice(judged: nn.Module) -> dict:
        return dict(zip(("mAP", "top1"), next(scores), strict=True))

    _, reports, snapshots, counters = run(
        TRAIN.model_copy(update={"epochs": 3}), evaluate=judge_twice, objective="top1"
    )
    assert (counters.best_score, counters.best_epoch) == (0.7, 2)
    assert [report["best_top1"] for report in reports] == [0.1, 0.7, 0.7]
    for name, tensor in snapshots[-1].best.items():
        assert torch.equal(tensor, snapshots[1].tensors[f"ema/{name}"])


def test_no_epochs_scores_the_model_as_it_is() -> None:
    trained, reports, snapshots, counters = run(TRAIN.model_copy(update={"epochs": 0}))
    untouched = model()
    expected = judge(untouched)["mAP"]
    assert [(r["epoch"], r["mAP"], r["best_mAP"]) for r in reports] == [(0, expected, expected)]
    assert (counters.epoch, counters.best_score) == (0, expected)
    for name, tensor in untouched.state_dict().items():
        assert torch.equal(trained.state_dict()[name], tensor)
        assert torch.equal(snapshots[-1].best[name], tensor)


def test_a_loss_scale_scales_the_gradient_and_not_the_report() -> None:
    # Without momentum, SGD's step is proportional to the gradient.
    sgd = OptimConfig(name="sgd", momentum=0.0, lr=1e-3, schedule="constant", weight_decay=0.0)
    one_step = {"num_batches": 1, "train_batches": lambda epoch: list(batches(epoch))[:1], "optim_config": sgd}
    train = TRAIN.model_copy(update={"epochs": 1})
    start = dict(model().named_parameters())
    steps, losses = [], []
    for scale in (1.0, 0.25):
        trained, reports, _, _ = run(train, loss_scale=scale, **one_step)
        steps.append({name: p.detach() - start[name] for name, p in trained.named_parameters()})
        losses.append(reports[0]["loss"])
    assert losses[0] == losses[1]
    for name, step in steps[0].items():
        torch.testing.assert_close(steps[1][name], 0.25 * step, atol=1e-8, rtol=1e-3)


def test_inputs_decide_what_the_model_and_the_loss_see() -> None:
    seen = []

    def inputs(batch: dict, epoch: int) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        seen.append(epoch)
        return (torch.zeros(len(batch["labels"]), 3, 8, 8),), torch.ones(len(batch["labels"]), CLASSES)

    _, reports, _, _ = run(inputs=inputs)
    assert seen == [epoch for epoch in range(6) for _ in range(IMAGES // BATCH)]
    assert reports[-1]["loss"] < reports[0]["loss"]
