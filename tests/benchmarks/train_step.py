"""Images per second of a training step: ResNet50 with our head, with timm's, and with pooling.

    python -m tests.benchmarks.train_step [--device cuda] [--sizes 224 448] [--batches 128 64] [--rounds 20]

A step is the forward pass, the asymmetric loss, the backward pass and AdamW, on one batch that lies on the device
already. Sides: ours (`trainables.classifier`); timm's ResNet50 with timm's head, made to run (`timm_head`); the same
with what timm's pull request 2045 computes; and timm's ResNet50 as it is, with pooling. On a GPU in bfloat16 autocast
and channels last, each side eager and under torch.compile; on a CPU in float32, eager.

On a GPU it ends with 1 if ours reaches less than 0.85 (224 pixels) or 0.92 (448) of the pooling model, eager or
compiled. On a CPU there is no target.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from tests.benchmarks import timm_head
from tests.benchmarks.rounds import Run, machine_line, measure, others_line, ratio, why_not
from trainables.classifier import build
from trainables.config import LossConfig, ModelConfig, OptimConfig
from trainables.losses import build_loss
from trainables.ml_decoder import MLDecoder
from trainables.optim import build_optimizer

OURS, TIMM, FIXED, POOLING = "ours", "timm's head", "timm's, #2045", "pooling"
EAGER, COMPILED = "eager", "compiled"
TARGETS = {224: 0.85, 448: 0.92}
"""Image size -> least share of the pooling model's images per second, on a GPU."""
POSITIVES = 0.036
"""Share of positive labels: 2.9 of COCO's 80 classes an image."""


@dataclass(frozen=True)
class Result:
    """One image size, eager or compiled."""

    size: int
    batch: int
    way: str
    times: dict[str, list[float]]
    """Side -> seconds of a step, one value a round."""
    missing: dict[str, str]
    """Side -> why it did not run."""
    others: float | None

    def images_per_s(self, side: str) -> float:
        return self.batch / statistics.median(self.times[side])

    def share_of_pooling(self, side: str) -> float:
        return ratio(self.times, POOLING, side)


@dataclass(frozen=True)
class Setting:
    """What is the same for all sides."""

    device: torch.device
    precision: str
    rounds: int
    backbone: str = "resnet50"
    num_classes: int = 80

    def autocast(self) -> AbstractContextManager:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    @property
    def layout(self) -> torch.memory_format:
        return torch.contiguous_format if self.device.type == "cpu" else torch.channels_last


def build_models(setting: Setting) -> dict[str, nn.Module]:
    """All sides in training mode on the device; those with a decoder start from the same head."""
    config = ModelConfig(backbone=setting.backbone, num_classes=setting.num_classes)
    ours = build(config)
    assert isinstance(ours.head, MLDecoder)
    models: dict[str, Any] = {OURS: ours}
    for name, kind in ((TIMM, timm_head.TimmHead), (FIXED, timm_head.PullRequestHead)):
        model = timm.create_model(setting.backbone, num_classes=setting.num_classes)
        # As timm's add_ml_decoder_head does it for models that end with `global_pool` and `fc`.
        model.global_pool, model.fc = nn.Identity(), timm_head.from_ours(ours.head, kind)
        models[name] = model
    models[POOLING] = timm.create_model(setting.backbone, num_classes=setting.num_classes)
    return {name: model.to(setting.device, memory_format=setting.layout).train() for name, model in models.items()}


def step_of(model: nn.Module, forward: Callable[[Tensor], Tensor], images: Tensor, setting: Setting) -> Run:
    """One training step of `model`, whose forward pass is `forward`."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(len(images), setting.num_classes, generator=generator) < POSITIVES).float().to(images.device)
    loss_of, optimizer = build_loss(LossConfig()), build_optimizer(model, OptimConfig())

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with setting.autocast():
            logits = forward(images)
        loss_of(logits, labels).backward()
        optimizer.step()

    return run


def measure_size(size: int, batch: int, ways: Sequence[str], setting: Setting) -> list[Result]:
    """A result for each way."""
    results = []
    for way in ways:
        torch.manual_seed(0)
        torch.compiler.reset()
        images = torch.randn(batch, 3, size, size, device=setting.device).contiguous(memory_format=setting.layout)
        runs: dict[str, Run] = {}
        missing: dict[str, str] = {}
        for name, model in build_models(setting).items():
            run = step_of(model, torch.compile(model) if way == COMPILED else model, images, setting)
            if reason := why_not(run):
                missing[name] = reason
            else:
                runs[name] = run
        repeats = 1 if setting.device.type == "cpu" else 3
        measured = measure(runs, rounds=setting.rounds, device=setting.device, repeats=repeats, warmup=1)
        results.append(Result(size, batch, way, measured.times, missing, measured.others))
        print(f"measured: {size} px, {way}", file=sys.stderr, flush=True)
    return results


def missed(results: Sequence[Result]) -> list[str]:
    """What a GPU should have reached and did not, as sentences."""
    found = []
    for result in results:
        target = TARGETS.get(result.size)
        if target is None:
            continue
        if OURS in result.missing or POOLING in result.missing:
            found.append(f"{result.size} px, {result.way}: did not run")
        elif result.share_of_pooling(OURS) < target:
            share = result.share_of_pooling(OURS)
            found.append(f"{result.size} px, {result.way}: {share:.3f} of the pooling model, the target is {target}")
    return found


def table(results: Sequence[Result], what: str, machine: str) -> str:
    """What a person reads: images per second, with the share of the pooling model in brackets."""
    sides = (OURS, TIMM, FIXED, POOLING)
    lines = [what, f"{'images per second':28}" + "".join(f"{side:>20}" for side in sides)]
    for result in results:
        title = f"{result.size} px, batch {result.batch}, {result.way}"
        lines.append(f"{title:28}" + "".join(f"{_cell(result, side):>20}" for side in sides))
    lines += [
        f"{side}, {result.size} px, {result.way}, was not run: {why}"
        for result in results
        for side, why in result.missing.items()
    ]
    return "\n".join([*lines, *others_line([result.others for result in results]), machine])


def _cell(result: Result, side: str) -> str:
    if side in result.missing:
        return "not run"
    if POOLING in result.missing:
        return f"{result.images_per_s(side):.1f}"
    return f"{result.images_per_s(side):.1f} ({result.share_of_pooling(side):.3f})"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.train_step", description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--threads", type=int, help="of PyTorch; default: its own choice, one per core")
    parser.add_argument("--rounds", type=int, help="default: 20 on a GPU, 5 on a CPU")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 448], metavar="PIXELS")
    parser.add_argument("--batches", type=int, nargs="+", help="one for each size; default: 128 64, on a CPU 8 4")
    parser.add_argument("--ways", choices=(EAGER, COMPILED), nargs="+", help="default: both on a GPU, eager on a CPU")
    parser.add_argument("--backbone", default="resnet50", help="a timm model that ends with `global_pool` and `fc`")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    on_cpu = arguments.device.type == "cpu"
    batches = arguments.batches or ([8, 4] if on_cpu else [128, 64])[: len(arguments.sizes)]
    if len(batches) != len(arguments.sizes):
        parser.error(f"--batches must have one value for each size, but got {batches} for {arguments.sizes}")
    setting = Setting(
        device=arguments.device,
        precision=arguments.precision or ("fp32" if on_cpu else "bf16"),
        rounds=arguments.rounds or (5 if on_cpu else 20),
        backbone=arguments.backbone,
    )
    results = []
    for size, batch in zip(arguments.sizes, batches, strict=True):
        results += measure_size(size, batch, arguments.ways or ([EAGER] if on_cpu else [EAGER, COMPILED]), setting)
    machine = machine_line(setting.device)
    what = f"a training step of {setting.backbone}, {setting.precision}, {setting.rounds} rounds"
    print(table(results, what, machine))
    if arguments.json:
        content = {"machine": machine, "what": what, "results": [asdict(result) for result in results]}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    if on_cpu:
        return 0
    for sentence in missed(results):
        print(f"missed: {sentence}")
    return int(bool(missed(results)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
