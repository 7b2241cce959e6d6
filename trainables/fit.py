"""Trains one model: epochs in, reports and snapshots out.

`fit` knows neither files nor clusters. It takes callables: where batches come from, how the model is judged,
whom to tell, where to save, and when to stop. A snapshot is saved before its epoch is reported, and the report is
repeated after a resume, so that a kill between the two loses nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import nn

from trainables import optim
from trainables.checkpoint import Snapshot, Tensors, flatten_optimizer, restore_optimizer, under, with_prefix
from trainables.checkpoint_files import Counters
from trainables.config import OptimConfig, TrainConfig

Batch = Mapping[str, Any]
Metrics = dict[str, Any]
Inputs = Callable[[Batch, int], tuple[tuple[torch.Tensor, ...], torch.Tensor]]


@dataclass(frozen=True)
class World:
    """This worker's place among those that train the same model."""

    rank: int = 0
    size: int = 1
    all_reduce_sum: Callable[[float], float] = lambda value: value


@dataclass(frozen=True)
class Device:
    """Where the tensors live, and how an image batch gets there."""

    device: torch.device
    prepare: Callable[[Any], torch.Tensor]
    """uint8 (B, 3, H, W) array -> normalised float tensor on the device."""
    autocast: Callable[[], AbstractContextManager] = nullcontext

    def labels(self, batch: Batch) -> torch.Tensor:
        """Labels (B, K), float, on the device."""
        return torch.as_tensor(batch["labels"]).to(self.device, non_blocking=True).float()


class Diverged(RuntimeError):
    """The loss is not finite."""


def fit(
    model: nn.Module,
    loss: nn.Module,
    *,
    optim_config: OptimConfig,
    train: TrainConfig,
    num_batches: int,
    train_batches: Callable[[int], Iterable[Batch]],
    evaluate: Callable[[nn.Module], Metrics],
    report: Callable[[Metrics], None],
    save: Callable[[Snapshot], None] = lambda snapshot: None,
    resume: Snapshot | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    objective: str = "mAP",
    loss_scale: float = 1.0,
    inputs: Inputs | None = None,
    device: Device,
    world: World = World(),
    parallel: Callable[[nn.Module], nn.Module] = lambda model: model,
) -> Counters:
    """Train `model` for `train.epochs` epochs and return where it stands.

    Args:
        model: on `device` already; `parallel` wraps it for the forward pass (DistributedDataParallel).
        loss: logits (B, K), labels (B, K) -> the SUM over the batch. Each worker's sum is multiplied by
            `world.size`, because DDP averages gradients: together they are the gradient of the global sum.
        loss_scale: of the gradient, for a mean instead of the sum; the loss that is reported is always the sum
            over classes and the mean over images.
        num_batches: global batches in an epoch; the schedule's length is `num_batches * train.epochs`.
        train_batches: epoch (from 0) -> this worker's share of every global batch.
        inputs: a training batch and its epoch -> the model's arguments and the labels, as tensors on the device;
            None: the images as they are.
        evaluate: model -> metrics with at least `objective`, of which more is better; all workers call it.
        report, save: called once an epoch, `save` only when one is due.
        should_stop: polled at each step; training then ends at once, resumable from the last snapshot.

    With no epochs at all the model is evaluated as it is, and that is reported as epoch 0.

    Raises:
        Diverged: the loss of a step is NaN or infinite.
    """
    trained = _Trained(model, optim.build_optimizer(model, optim_config), optim.build_ema(model, train.ema_decay))
    counters, best = Counters(), {}
    if resume is not None:
        counters, best = resume.counters, resume.best
        trained.restore(resume)
        report(counters.metrics)
    elif train.epochs == 0:
        return _evaluate_only(trained, evaluate, objective, report, save)
    inputs = inputs or (lambda batch, epoch: ((device.prepare(batch["image"]),), device.labels(batch)))
    forward = parallel(model)
    forward.train()
    last_save = time.monotonic()
    for epoch in range(counters.epoch, train.epochs):
        started = time.monotonic()
        seed_epoch(train.seed, epoch, world.rank)
        loss_sum: float | torch.Tensor = 0.0
        images, step, lr = 0, counters.step, 0.0
        for batch in train_batches(epoch):
            if should_stop():
                return counters
            lr = optim_config.lr * optim.lr_factor(optim_config, step, num_batches * train.epochs)
            optim.set_lr(trained.optimizer, lr)
            arguments, labels = inputs(batch, epoch)
            batch_loss = _step(
                forward, loss, arguments, labels, trained, device, loss_scale * world.size, optim_config.clip_norm
            )
            step += 1
            if trained.ema is not None:
                trained.ema.update(model, step=step)
            loss_sum = loss_sum + batch_loss  # stays on the device: no wait in every step
            images += len(batch["labels"])
        num_images = world.all_reduce_sum(images)
        mean_loss = world.all_reduce_sum(float(loss_sum)) / num_images
        if not math.isfinite(mean_loss):
            raise Diverged(
                f"the loss must stay finite, but epoch {epoch + 1} gave {mean_loss}. Lower optim.lr ({lr:g})."
            )
        train_seconds = time.monotonic() - started
        metrics = evaluate(trained.judged)
        if metrics[objective] > counters.best_score:
            counters = replace(counters, best_score=metrics[objective], best_epoch=epoch + 1)
            best = _to_cpu(trained.judged.state_dict())
        seconds = counters.seconds + time.monotonic() - started
        metrics = {
            "epoch": epoch + 1,
            "loss": mean_loss,
            "lr": lr,
            **metrics,
            f"best_{objective}": counters.best_score,
            "best_epoch": counters.best_epoch,
            "images_per_s": num_images / train_seconds,
            "seconds": seconds,
        }
        counters = replace(counters, epoch=epoch + 1, step=step, seconds=seconds, metrics=metrics)
        is_due = time.monotonic() - last_save >= train.checkpoint_interval_s
        if is_due or epoch + 1 == train.epochs:
            save(trained.snapshot(counters, best))
            last_save = time.monotonic()
        report(metrics)
    return counters


def _evaluate_only(
    trained: _Trained,
    evaluate: Callable[[nn.Module], Metrics],
    objective: str,
    report: Callable[[Metrics], None],
    save: Callable[[Snapshot], None],
) -> Counters:
    started = time.monotonic()
    metrics = evaluate(trained.judged)
    seconds, score = time.monotonic() - started, metrics[objective]
    metrics = {"epoch": 0, **metrics, f"best_{objective}": score, "best_epoch": 0, "seconds": seconds}
    counters = Counters(best_score=score, seconds=seconds, metrics=metrics)
    save(trained.snapshot(counters, _to_cpu(trained.judged.state_dict())))
    report(metrics)
    return counters


def seed_epoch(seed: int, epoch: int, rank: int) -> None:
    """Seed torch's generator as a function of (seed, epoch, rank), so that a resumed epoch repeats itself."""
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1, np.uint64)[0]))


def _step(
    forward: nn.Module,
    loss: nn.Module,
    arguments: tuple[torch.Tensor, ...],
    labels: torch.Tensor,
    trained: _Trained,
    device: Device,
    scale: float,
    clip_norm: float | None,
) -> torch.Tensor:
    """One update; returns this worker's sum of the loss over its share of the batch."""
    with device.autocast():
        logits = forward(*arguments)
    batch_loss = loss(logits.float(), labels)
    trained.optimizer.zero_grad(set_to_none=True)
    (batch_loss * scale).backward()
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(trained.model.parameters(), clip_norm)
    trained.optimizer.step()
    return batch_loss.detach()


@dataclass(frozen=True)
class _Trained:
    """What training changes."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: ModelEmaV3 | None

    @property
    def judged(self) -> nn.Module:
        """The weights that are evaluated and shipped: the average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def snapshot(self, counters: Counters, best: Tensors) -> Snapshot:
        tensors = {
            **with_prefix("model", self.model.state_dict()),
            **with_prefix("ema", {} if self.ema is None else self.ema.module.state_dict()),
            **with_prefix("optim", flatten_optimizer(self.optimizer)),
            "rng": torch.get_rng_state(),
        }
        return Snapshot(counters, _to_cpu(tensors), best)

    def restore(self, snapshot: Snapshot) -> None:
        self.model.load_state_dict(under("model", snapshot.tensors))
        restore_optimizer(self.optimizer, under("optim", snapshot.tensors))
        if self.ema is not None:
            self.ema.module.load_state_dict(under("ema", snapshot.tensors))
        torch.set_rng_state(snapshot.tensors["rng"])


def _to_cpu(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
