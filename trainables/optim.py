"""Optimizers of timm.optim, the learning-rate schedules, and the moving average of the weights.

A schedule is a pure function of the step, so a resumed trial needs nothing but its step to go on.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import nn

from trainables.config import OptimConfig

ONE_CYCLE_START = 1 / 25
"""OneCycle starts at lr / 25 (the ML-Decoder recipe's div_factor) ..."""
ONE_CYCLE_END = 1e-6
"""... and ends at lr * 1e-6 (1e-10 for the recipe's 1e-4)."""
STEP_FACTOR = 0.1
"""What a milestone of the step schedule multiplies the rate by."""


def parameter_groups(model: nn.Module, weight_decay: float, head_lr_multiple: float = 1.0) -> list[dict]:
    """Trainable parameters by two questions: is it decayed, and does it belong to `model.head`?

    Not decayed are biases, all one-dimensional tensors, and what the backbone's own `no_weight_decay` names
    (position embeddings). A group's `lr_scale` is what `set_lr` multiplies the rate by. No group is empty.
    """
    trunk = getattr(getattr(model, "backbone", None), "trunk", None)
    undecayed: Collection[str] = getattr(trunk, "no_weight_decay", list)()
    groups = param_groups_weight_decay(
        model, weight_decay, no_weight_decay_list=[f"backbone.trunk.{name}" for name in undecayed]
    )
    head = {id(parameter) for name, parameter in model.named_parameters() if name.startswith("head.")}
    parts = [
        {"params": [p for p in group["params"] if (id(p) in head) == is_head], "weight_decay": group["weight_decay"]}
        | {"lr_scale": head_lr_multiple if is_head else 1.0}
        for group in groups
        for is_head in (False, True)
    ]
    return [part for part in parts if part["params"]]


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The configured optimizer over `parameter_groups`; its rate is set at each step from `lr_factor`.

    AdamW, Adam and SGD are PyTorch's own; Adam's and SGD's decay is L2, added to the gradient. LAMB (arXiv
    1904.00962) is timm's, which scales down gradients whose norm over all parameters is above 1.
    """
    groups = parameter_groups(model, config.weight_decay, config.head_lr_multiple)
    # torch.optim.SGD refuses Nesterov's momentum without any.
    options: dict[str, Any] = {"nesterov": config.momentum > 0} if config.name == "sgd" else {}
    optimizer = create_optimizer_v2(
        groups,
        config.name,
        lr=config.lr,
        momentum=config.momentum,
        betas=(config.beta1, config.beta2),
        **options,
    )
    set_lr(optimizer, config.lr)
    return optimizer


def lr_factor(config: OptimConfig, step: int, total_steps: int) -> float:
    """The learning rate of update number `step` (from 0), as a share of the peak."""
    if config.schedule == "constant":
        return 1.0
    warmup_end = config.warmup_share * total_steps - 1  # OneCycleLR's phase boundary
    if step <= warmup_end:
        if config.schedule == "one_cycle":
            return _cosine(ONE_CYCLE_START, 1.0, step / max(1e-9, warmup_end))
        return (step + 1) / (warmup_end + 1)
    if config.schedule == "step":
        return STEP_FACTOR ** sum(step >= round(share * total_steps) for share in config.milestones)
    progress = (step - max(0.0, warmup_end)) / max(1e-9, total_steps - 1 - max(0.0, warmup_end))
    return _cosine(1.0, ONE_CYCLE_END if config.schedule == "one_cycle" else 0.0, min(1.0, progress))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group this learning rate, times the group's own `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def build_ema(model: nn.Module, decay: float) -> ModelEmaV3 | None:
    """Moving average with warm-up: without it, 0.9997 still holds most of the random start after 1,000 steps."""
    return ModelEmaV3(model, decay=decay, use_warmup=True) if decay > 0 else None


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
