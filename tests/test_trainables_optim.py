"""trainables.optim: optimizers, schedules, what is decayed, rates of head and batch, and the average's warm-up."""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise
from typing import Any

import pytest
import timm
import timm.optim
import torch
from timm.utils import ModelEmaV3
from torch import nn

from trainables import optim
from trainables.classifier import build
from trainables.config import ModelConfig, OptimConfig, TrainConfig
from trainables.scaling import scaled_lr

STEPS = 40


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(5))


def classifier() -> nn.Module:
    return build(
        ModelConfig(backbone="test_vit", num_classes=6, embed_dim=16, num_heads=2, feedforward_dim=16),
        image_size=32,
    )


def factors(steps: int = STEPS, **settings: object) -> list[float]:
    config = OptimConfig.model_validate({"lr": 1e-3, **settings})
    return [optim.lr_factor(config, step, steps) for step in range(steps)]


@pytest.mark.parametrize(  # whose product is above 1: below it torch starts in mid-fall, or divides by zero
    ("steps", "warmup_share"),
    [(3, 0.5), (3, 0.9), (7, 0.2), (7, 0.3), (7, 0.9), (40, 0.2), (40, 0.3), (40, 0.5), (333, 0.2), (333, 0.9)],
)
def test_one_cycle_equals_torch_at_every_step(steps: int, warmup_share: float) -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=1.0,
        total_steps=steps,
        pct_start=warmup_share,
        cycle_momentum=False,
        div_factor=1 / optim.ONE_CYCLE_START,
        final_div_factor=optim.ONE_CYCLE_START / optim.ONE_CYCLE_END,
    )
    expected = []
    for _ in range(steps):
        expected += theirs.get_last_lr()
        optimizer.step()
        if len(expected) < steps:
            theirs.step()
    assert factors(steps, warmup_share=warmup_share) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_one_cycle_starts_and_ends_as_the_recipe_does() -> None:
    rates = factors()
    assert rates[0] == pytest.approx(1 / 25)
    assert max(rates) == rates[7] == pytest.approx(1.0)  # a fifth of 40 steps, counted from 0
    assert rates[-1] == pytest.approx(1e-6)


@pytest.mark.parametrize("warmup_share", [0.1, 0.2, 0.33, 0.5])
def test_cosine_rises_in_a_line_and_falls_to_zero(warmup_share: float) -> None:
    rates = factors(schedule="cosine", warmup_share=warmup_share)
    peak = rates.index(max(rates))
    rise, fall = rates[: peak + 1], rates[peak:]
    assert all(low < high for low, high in pairwise(rise))
    assert all(high > low for high, low in pairwise(fall))
    assert rates[0] == pytest.approx(1 / (warmup_share * STEPS))
    assert 0.97 < rates[peak] <= 1.0
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)
    slopes = {round(high - low, 9) for low, high in pairwise(rise[:-1])}
    assert len(slopes) == 1


@pytest.mark.parametrize("milestones", [(0.5,), (0.25, 0.5, 0.75), (1 / 3, 0.7, 0.9), (0.0, 1.0)])
@pytest.mark.parametrize("steps", [12, 30, 120])
def test_step_equals_torchs_multi_step_at_every_step(steps: int, milestones: tuple[float, ...]) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    at = [round(share * steps) for share in milestones]
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, at, gamma=0.1)
    expected = []
    for _ in range(steps):
        expected += theirs.get_last_lr()
        optimizer.step()
        theirs.step()
    got = factors(steps, schedule="step", milestones=milestones, warmup_share=0.0)
    assert got == pytest.approx(expected, rel=1e-9)


def test_step_rises_as_cosine_does() -> None:
    rates = factors(schedule="step", milestones=(0.5, 0.75), warmup_share=0.2)
    assert rates[:8] == factors(schedule="cosine", warmup_share=0.2)[:8]
    assert rates[8:] == pytest.approx([1.0] * 12 + [0.1] * 10 + [0.01] * 10)


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
def test_without_a_warm_up_the_rate_starts_at_its_peak_and_only_falls(schedule: str) -> None:
    rates = factors(schedule=schedule, warmup_share=0.0)
    assert rates[0] == 1.0
    assert rates == sorted(rates, reverse=True)


def test_a_constant_rate_does_not_change() -> None:
    assert set(factors(schedule="constant")) == {1.0}


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_very_short_training_has_rates_too(schedule: str, steps: int) -> None:
    rates = factors(steps, schedule=schedule)
    assert all(0.0 <= rate <= 1.0 for rate in rates)
    assert max(rates) == 1.0


def test_setting_the_rate_reaches_every_group() -> None:
    optimizer = optim.build_optimizer(classifier(), OptimConfig())
    optim.set_lr(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125] * 4


def of_head(trained: nn.Module) -> set[int]:
    return {id(parameter) for name, parameter in trained.named_parameters() if name.startswith("head.")}


def test_the_head_has_its_multiple_of_the_rate_from_the_start_and_whenever_it_is_set() -> None:
    trained = classifier()
    optimizer = optim.build_optimizer(trained, OptimConfig(lr=0.5, head_lr_multiple=10.0))
    head = of_head(trained)
    for lr in (0.5, 0.125):
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert {rates[key] for key in head} == {10 * lr}
        assert {rates[id(p)] for p in trained.backbone.parameters()} == {lr}
        optim.set_lr(optimizer, 0.125)


def test_biases_and_norms_are_not_decayed() -> None:
    trained = classifier()
    groups = optim.parameter_groups(trained, 0.01)
    by_decay: dict[float, set[int]] = {0.01: set(), 0.0: set()}
    for group in groups:
        by_decay[group["weight_decay"]] |= {id(parameter) for parameter in group["params"]}
    norms = {
        id(parameter)
        for module in trained.modules()
        if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d)
        for parameter in module.parameters()
    }
    biases = {id(parameter) for name, parameter in trained.named_parameters() if name.endswith("bias")}
    assert norms and biases
    assert norms | biases <= by_decay[0.0]
    matrices = {id(m.weight) for m in trained.modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    assert matrices <= by_decay[0.01]
    assert by_decay[0.0] & of_head(trained) and by_decay[0.01] & of_head(trained)


def test_what_the_backbone_names_is_not_decayed() -> None:
    trained = classifier()
    (decays,) = [
        group["weight_decay"]
        for group in optim.parameter_groups(trained, 0.01)
        if any(parameter is trained.backbone.trunk.pos_embed for parameter in group["params"])
    ]
    assert trained.backbone.trunk.pos_embed.ndim == 3 and decays == 0.0


def test_no_decay_at_all_leaves_a_group_for_the_head_and_one_for_the_rest() -> None:
    groups = optim.parameter_groups(classifier(), 0.0)
    assert [group["weight_decay"] for group in groups] == [0.0, 0.0]


def train(trained: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> list[torch.Tensor]:
    for step in range(steps):
        inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        trained(inputs).square().sum().backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in trained.parameters()]


@pytest.mark.parametrize(
    ("config", "theirs", "options"),
    [
        ({"name": "adamw", "beta1": 0.8, "beta2": 0.95}, torch.optim.AdamW, {"betas": (0.8, 0.95)}),
        ({"name": "adam", "beta1": 0.8, "beta2": 0.95}, torch.optim.Adam, {"betas": (0.8, 0.95)}),
        ({"name": "sgd", "momentum": 0.7}, torch.optim.SGD, {"momentum": 0.7, "nesterov": True}),
        ({"name": "sgd", "momentum": 0.0}, torch.optim.SGD, {}),
        ({"name": "lamb", "beta1": 0.8, "beta2": 0.95}, timm.optim.Lamb, {"betas": (0.8, 0.95)}),
    ],
)
def test_updates_are_bit_equal_to_the_optimizers_own(config: dict[str, Any], theirs: Any, options: dict) -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3))
    copy = deepcopy(ours)
    start = [parameter.detach().clone() for parameter in ours.parameters()]
    groups = [
        {"params": [p for p in copy.parameters() if p.ndim == 1], "weight_decay": 0.0},
        {"params": [p for p in copy.parameters() if p.ndim == 2], "weight_decay": 0.3},
    ]
    settings = OptimConfig.model_validate({"lr": 0.01, "weight_decay": 0.3, **config})
    got = train(ours, optim.build_optimizer(ours, settings))
    expected = train(copy, theirs(groups, lr=0.01, **options))
    assert all(torch.equal(one, two) for one, two in zip(got, expected, strict=True))
    assert not any(torch.equal(one, two) for one, two in zip(got, start, strict=True))


def test_every_parameter_is_trained_once() -> None:
    trained = classifier()
    optimizer = optim.build_optimizer(trained, OptimConfig())
    taken = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(taken) == sorted(id(parameter) for parameter in trained.parameters())
    assert len(set(taken)) == len(taken)


def test_frozen_parameters_are_left_out() -> None:
    trained = build(ModelConfig(backbone="test_resnet", head="gap", num_classes=6))
    trained.backbone.requires_grad_(False)
    optimizer = optim.build_optimizer(trained, OptimConfig())
    taken = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert taken == {id(parameter) for parameter in trained.head.parameters()}


def test_a_model_without_biases_gets_one_group() -> None:
    optimizer = optim.build_optimizer(nn.Linear(3, 2, bias=False), OptimConfig())
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_a_global_batch_keeps_the_rate_under_any_number_of_workers(workers: int) -> None:
    config, train = OptimConfig(lr=1e-3), TrainConfig(batch_size=64)
    assert scaled_lr(config, train, workers)[:2] == (64, 1e-3)


@pytest.mark.parametrize(("rule", "lr"), [("linear", 4e-3), ("sqrt", 2e-3), ("none", 1e-3)])
def test_a_batch_fixed_per_worker_scales_the_rate_by_the_stated_rule(rule: str, lr: float) -> None:
    train = TrainConfig.model_validate({"batch_size": 64, "batch_size_per_worker": 32, "lr_scaling": rule})
    batch_size, scaled, why = scaled_lr(OptimConfig(lr=1e-3), train, 8)
    assert batch_size == 256
    assert scaled == pytest.approx(lr)
    assert "32 x 8 workers = 256" in why
    assert f"0.001 -> {lr:g} ({rule} rule against batch 64)" in why


def test_a_trial_in_its_own_process_counts_as_one_worker() -> None:
    train = TrainConfig(batch_size=64, batch_size_per_worker=32)
    assert scaled_lr(OptimConfig(lr=1e-3), train, 0)[:2] == scaled_lr(OptimConfig(lr=1e-3), train, 1)[:2]
    assert scaled_lr(OptimConfig(lr=1e-3), train, 0)[:2] == (32, 5e-4)


def test_the_average_forgets_a_random_start_within_a_few_steps() -> None:
    trained = nn.Linear(4, 4)
    start = trained.weight.detach().clone()
    average, cold = optim.build_ema(trained, 0.9997), ModelEmaV3(trained, decay=0.9997)
    assert average is not None
    for step in range(1, 6):
        with torch.no_grad():
            trained.weight.add_(1.0)
        average.update(trained, step=step)
        cold.update(trained, step=step)
    moved = trained.weight.detach() - start
    assert torch.all((trained.weight - average.module.weight).abs() < 0.4 * moved.abs())
    assert torch.all((cold.module.weight - start).abs() < 0.5 * moved.abs())  # without the warm-up: still near it


def test_the_average_does_as_timms_with_warm_up() -> None:
    trained = model()
    trained(torch.zeros(1, 3, 8, 8))
    ours, theirs = optim.build_ema(trained, 0.99), timm.utils.ModelEmaV3(trained, decay=0.99, use_warmup=True)
    assert ours is not None
    assert [ours.get_decay(step) for step in range(2000)] == [theirs.get_decay(step) for step in range(2000)]
    assert ours.get_decay(2000) == 0.99


def test_no_decay_means_no_average() -> None:
    assert optim.build_ema(nn.Linear(2, 2), 0.0) is None
