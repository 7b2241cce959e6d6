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
from timm.layers import convert_sync_batchnorm
from torch import nn

from trainables import backbones, checkpoint, evaluation, fit
from trainables.checkpoint_files import Counters
from trainables.classifier import Classifier, build
from trainables.config import AugmentConfig, LossConfig, ModelConfig, OptimConfig, TrainConfig, WordsConfig
from trainables.inputs import Pixels, TrainInputs, Vocabulary
from trainables.losses import build_loss, num_terms
from trainables.progressive import epoch_size
from trainables.scaling import scaled_lr, uses_bf16
from trainables.word_decoder import WordDecoder


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
        self, epoch: int, *, seed: int, batch_size: int, rank: int = 0, world_size: int = 1, repeats: int = 1
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
    augment: AugmentConfig
    words: WordsConfig
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    feed: Feed
    folder: str
    """Of the trial; checkpoints go to `folder/checkpoints`, readable by every worker."""
    use_gpu: bool
    num_threads: int
    vocabulary: Vocabulary | None = None
    """Only for the word decoder."""


def train_loop(config: dict[str, Any]) -> None:
    """`train_loop_per_worker` of the TorchTrainer; `config` holds the `job` and, in local mode, a `report`."""
    run(config["job"], config.get("report") or ray.train.report)


def run(job: Job, report: Callable[[fit.Metrics], None], should_stop: Callable[[], bool] = lambda: False) -> Counters:
    """Train `job` in this process, as one worker of `torch.distributed`'s world when there is one."""
    torch.set_num_threads(job.num_threads)
    world = _world()
    pixels, device = _device(job)
    batch_size, lr, _ = scaled_lr(job.optim, job.train, world.size)
    torch.manual_seed(job.train.seed)  # the same start on every rank
    checkpoints = Path(job.folder) / "checkpoints"
    resume = checkpoint.latest(checkpoints)
    backbones.check_sizes(job.model.backbone, job.feed.image_size, _sizes(job))
    model = build_model(job, with_weights=resume is None).to(device.device)
    if _channels_last(job):
        model = model.to(memory_format=torch.channels_last)
    if job.train.sync_batch_norm and world.size > 1:
        model = convert_sync_batchnorm(model)  # timm's: PyTorch's own drops the activations inside timm's norms

    def save(snapshot: checkpoint.Snapshot) -> None:
        if world.rank == 0:
            checkpoint.write(checkpoints, snapshot, keep=job.train.keep_checkpoints)

    num_batches = job.feed.num_batches(batch_size)
    mean_batch = len(job.feed.train.image_ids) / num_batches  # batches of an epoch differ by one image at most
    return fit.fit(
        model,
        build_loss(job.loss),
        optim_config=job.optim.model_copy(update={"lr": lr}),
        train=job.train,
        num_batches=num_batches,
        train_batches=lambda epoch: job.feed.train_batches(
            epoch,
            seed=job.train.seed,
            batch_size=batch_size,
            rank=world.rank,
            world_size=world.size,
            repeats=job.augment.repeats,
        ),
        evaluate=lambda judged: _evaluate(judged, job, device, world),
        report=report,
        save=save,
        resume=resume,
        should_stop=should_stop,
        objective=job.model.objective,
        loss_scale=1.0 if job.loss.reduction == "sum" else 1 / (mean_batch * num_terms(job.loss, _num_trained(job))),
        inputs=_inputs(job, pixels, model),
        device=device,
        world=world,
        parallel=lambda module: _parallel(module, device.device, world),
    )


def build_model(job: Job, *, with_weights: bool = True) -> Classifier:
    """The trial's model as it starts; without the weights that it starts from where a checkpoint has newer ones."""
    model_config = job.model
    if not with_weights:
        model_config = model_config.model_copy(update={"pretrained": False, "weights": None})
    words = torch.as_tensor(job.vocabulary.vectors) if job.vocabulary else None
    return build(model_config, image_size=job.feed.image_size, words=words)


def _sizes(job: Job) -> list[int]:
    """Side of the training images in each epoch."""
    return [epoch_size(job.train, job.feed.image_size, epoch) for epoch in range(job.train.epochs)]


def _inputs(job: Job, pixels: Pixels, model: Classifier) -> TrainInputs:
    def size(epoch: int) -> int:
        return epoch_size(job.train, job.feed.image_size, epoch)

    if job.vocabulary is None or not isinstance(model.head, WordDecoder):
        return TrainInputs(pixels, job.augment, size, job.words)
    seen = torch.as_tensor(job.vocabulary.seen, device=pixels.device)
    return TrainInputs(pixels, job.augment, size, job.words, model.head.words, seen)


def _num_trained(job: Job) -> int:
    """Logits that the loss sees of an image."""
    if job.vocabulary is None:
        return job.feed.train.labels.shape[1]
    return len(job.vocabulary.seen) + job.words.num_mixed + job.words.num_random


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
    unseen = job.vocabulary.unseen if job.vocabulary else ()
    return {**evaluation.judge(scored, job.model.task, unseen), "num_evaluated": len(scored.image_ids)}


def _world() -> fit.World:
    if not (dist.is_available() and dist.is_initialized()):
        return fit.World()
    device = ray.train.torch.get_device()

    def all_reduce_sum(value: float) -> float:
        total = torch.tensor(value, dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return float(total)

    return fit.World(dist.get_rank(), dist.get_world_size(), all_reduce_sum)


def _device(job: Job) -> tuple[Pixels, fit.Device]:
    if not job.use_gpu:
        device = torch.device("cpu")
    elif dist.is_available() and dist.is_initialized():
        device = ray.train.torch.get_device()
    else:
        device = torch.device("cuda", 0)  # Ray shows the trial's process its own GPU only
    pixels = Pixels(device, job.mean, job.std, torch.channels_last if _channels_last(job) else torch.contiguous_format)
    bf16 = uses_bf16(job.train, use_gpu=job.use_gpu)
    if job.train.precision == "auto" and bf16:  # older GPUs emulate it, slowly
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    autocast = (lambda: torch.autocast(device.type, torch.bfloat16)) if bf16 else nullcontext
    return pixels, fit.Device(device, pixels, autocast)


def _channels_last(job: Job) -> bool:
    return job.train.channels_last == "on" or (job.train.channels_last == "auto" and job.use_gpu)


def _parallel(model: nn.Module, device: torch.device, world: fit.World) -> nn.Module:
    if world.size == 1:
        return model
    return nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
