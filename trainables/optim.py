"""AdamW, the learning-rate schedules, and the moving average of the weights.

A schedule is a pure function of the step, so a resumed trial needs nothing but its step to go on.
"""

from __future__ import annotations

import math

import torch
from timm.utils import ModelEmaV3
from torch import nn

from trainables.config import OptimConfig

ONE_CYCLE_START = 1 / 25
"""OneCycle starts at lr / 25 (the ML-Decoder recipe's div_factor) ..."""
ONE_CYCLE_END = 1e-6
"""... and ends at lr * 1e-6 (1e-10 for the recipe's 1e-4)."""


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Trainable parameters in two groups: decayed, and not (biases and every other one-dimensional tensor)."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`; its learning rate is set at each step from `lr_factor`."""
    groups = [group for group in parameter_groups(model, config.weight_decay) if group["params"]]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2))


def lr_factor(config: OptimConfig, step: int, total_steps: int) -> float:
    """The learning rate of update number `step` (from 0), as a share of the peak."""
    if config.schedule == "constant":
        return 1.0
    warmup_end = config.warmup_share * total_steps - 1  # OneCycleLR's phase boundary
    if step <= warmup_end:
        progress = step / max(1e-9, warmup_end)
        if config.schedule == "cosine":
            return (step + 1) / (warmup_end + 1)
        return _cosine(ONE_CYCLE_START, 1.0, progress)
    progress = (step - max(0.0, warmup_end)) / max(1e-9, total_steps - 1 - max(0.0, warmup_end))
    return _cosine(1.0, ONE_CYCLE_END if config.schedule == "one_cycle" else 0.0, min(1.0, progress))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def build_ema(model: nn.Module, decay: float) -> ModelEmaV3 | None:
    """Moving average with warm-up: without it, 0.9997 still holds most of the random start after 1,000 steps."""
    return ModelEmaV3(model, decay=decay, use_warmup=True) if decay > 0 else None


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
