"""The Ray Train side of `fit`: what one worker process does with a trial.

The same `run` serves both ways: in the trial's own process, and in each process of a worker group, where the
model is wrapped for distributed data parallel, the loss is summed over the workers, and every worker scores its
share of the validation images before all of them are gathered and judged together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import nn

from trainables import checkpoint, evaluation, fit, metrics
from trainables.checkpoint_files import Counters
from trainables.classifier import build
from trainables.config import LossConfig, ModelConfig, OptimConfig, TrainConfig
from trainables.losses import build_loss
from trainables.scaling import scaled_lr, uses_bf16


class Feed(Protocol):
    """What a worker asks of the data; `datasets.pipeline.Feed` is one."""

    @property
    def train(self) -> Any: ...

    @property
    def val(self) -> Any: ...

    @property
    def image_size(self) -> int: ...

    def num_batches(self, batch_size: int) -> int: ...

    def train_batches(
        self, epoch: int, *, seed: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[dict[str, np.ndarray]]: ...

    def val_batches(
        self, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> Iterator[dict[str, np.ndarray]]: ...


@dataclass(frozen=True)
class Job:
    """One trial, complete: everything a worker needs to train it."""

    model: ModelConfig
    loss: LossConfig
    optim: OptimConfig
    train: TrainConfig
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    feed: Feed
    folder: str
    """Of the trial; checkpoints go to `folder/checkpoints`, readable by every worker."""
    use_gpu: bool
    num_threads: int


def train_loop(config: dict[str, Any]) -> None:
    """`train_loop_per_worker` of the TorchTrainer; `config` holds the `job` and, in local mode, a `report`."""
    run(config["job"], config.get("report") or ray.train.report)


def run(job: Job, report: Callable[[fit.Metrics], None], should_stop: Callable[[], bool] = lambda: False) -> Counters:
    """Train `job` in this process, as one worker of `torch.distributed`'s world when there is one."""
    torch.set_num_threads(job.num_threads)
    world = _world()
    device = _device(job)
    batch_size, lr, _ = scaled_lr(job.optim, job.train, world.size)
    torch.manual_seed(job.train.seed)  # the same start on every rank
    model = build(job.model, image_size=job.feed.image_size).to(device.device)
    if _channels_last(job):
        model = model.to(memory_format=torch.channels_last)
    if job.train.sync_batch_norm and world.size > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    checkpoints = Path(job.folder) / "checkpoints"

    def save(snapshot: checkpoint.Snapshot) -> None:
        if world.rank == 0:
            checkpoint.write(checkpoints, snapshot, keep=job.train.keep_checkpoints)

    return fit.fit(
        model,
        build_loss(job.loss),
        optim_config=job.optim.model_copy(update={"lr": lr}),
        train=job.train,
        num_batches=job.feed.num_batches(batch_size),
        train_batches=lambda epoch: job.feed.train_batches(
            epoch, seed=job.train.seed, batch_size=batch_size, rank=world.rank, world_size=world.size
        ),
        evaluate=lambda judged: _evaluate(judged, job, device, world),
        report=report,
        save=save,
        resume=checkpoint.latest(checkpoints),
        should_stop=should_stop,
        device=device,
        world=world,
        parallel=lambda module: _parallel(module, device.device, world),
    )


def _evaluate(model: nn.Module, job: Job, device: fit.Device, world: fit.World) -> fit.Metrics:
    if world.size > 1:  # each rank's batch statistics are its own: judge the first rank's
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
    batches = job.feed.val_batches(job.train.eval_batch_size, rank=world.rank, world_size=world.size)
    with device.autocast():
        mine = evaluation.score(model, batches, device.prepare, job.feed.val.labels.shape[1])
    parts = [mine]
    if world.size > 1:
        parts = [None] * world.size  # type: ignore[list-item]  # filled by all_gather_object
        dist.all_gather_object(parts, mine)
    scored = evaluation.merge(parts, job.feed.val.image_ids)
    return {
        "mAP": metrics.mean_average_precision(scored.logits, scored.labels),
        "num_evaluated": len(scored.image_ids),
    }


def _world() -> fit.World:
    if not (dist.is_available() and dist.is_initialized()):
        return fit.World()
    device = ray.train.torch.get_device()

    def all_reduce_sum(value: float) -> float:
        total = torch.tensor(value, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return float(total)

    return fit.World(dist.get_rank(), dist.get_world_size(), all_reduce_sum)


def _device(job: Job) -> fit.Device:
    if not job.use_gpu:
        device = torch.device("cpu")
    elif dist.is_available() and dist.is_initialized():
        device = ray.train.torch.get_device()
    else:
        device = torch.device("cuda", 0)  # Ray shows the trial's process its own GPU only
    # Pixels are 0..255 here, mean and std are of [0, 1].
    mean = torch.tensor(job.mean, device=device).view(1, 3, 1, 1) * 255
    inverse_std = 1 / (torch.tensor(job.std, device=device).view(1, 3, 1, 1) * 255)
    layout = torch.channels_last if _channels_last(job) else torch.contiguous_format

    def prepare(image: np.ndarray) -> torch.Tensor:
        moved = torch.from_numpy(image).to(device, non_blocking=True)
        return ((moved - mean) * inverse_std).contiguous(memory_format=layout)

    bf16 = uses_bf16(job.train, use_gpu=job.use_gpu)
    if job.train.precision == "auto" and bf16:  # older GPUs emulate it, slowly
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    autocast = (lambda: torch.autocast(device.type, torch.bfloat16)) if bf16 else nullcontext
    return fit.Device(device, prepare, autocast)


def _channels_last(job: Job) -> bool:
    return job.train.channels_last == "on" or (job.train.channels_last == "auto" and job.use_gpu)


def _parallel(model: nn.Module, device: torch.device, world: fit.World) -> nn.Module:
    if world.size == 1:
        return model
    return nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
