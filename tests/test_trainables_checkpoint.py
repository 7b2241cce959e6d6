"""Checkpoints: written and read whole, and an optimizer that goes on from one bit by bit."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from trainables import checkpoint, checkpoint_files, optim
from trainables.checkpoint import Snapshot
from trainables.checkpoint_files import CheckpointError, Counters
from trainables.config import OptimConfig

torch.set_num_threads(1)


def snapshot(epoch: int) -> Snapshot:
    tensors = {"model/weight": torch.full((3, 2), float(epoch)), "rng": torch.get_rng_state()}
    return Snapshot(Counters(epoch=epoch, step=epoch * 7, metrics={"mAP": 0.5}), tensors, {"weight": torch.ones(3)})


def test_round_trip(tmp_path: Path) -> None:
    written = snapshot(3)
    checkpoint.write(tmp_path, written, keep=2)
    read = checkpoint.latest(tmp_path)
    assert read is not None
    assert read.counters == written.counters
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in written.tensors.items())
    assert torch.equal(read.best["weight"], written.best["weight"])


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for epoch in range(1, 6):
        checkpoint.write(tmp_path, snapshot(epoch), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0004", "epoch-0005"]


def test_nothing_there_is_none(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "absent") is None


@pytest.mark.parametrize("damage", ["truncate", "remove", "flip", "no manifest"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_used(tmp_path: Path, damage: str) -> None:
    checkpoint.write(tmp_path, snapshot(1), keep=2)
    newest = checkpoint.write(tmp_path, snapshot(2), keep=2)
    tensors = newest / "state.safetensors"
    if damage == "truncate":
        tensors.write_bytes(tensors.read_bytes()[:-8])
    elif damage == "remove":
        tensors.unlink()
    elif damage == "flip":
        data = bytearray(tensors.read_bytes())
        data[-1] ^= 1
        tensors.write_bytes(data)
    else:
        (newest / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="epoch-0002"):
        checkpoint_files.check(newest)
    latest = checkpoint.latest(tmp_path)
    assert latest is not None and latest.counters.epoch == 1


def test_what_a_killed_writer_left_is_not_a_checkpoint(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, snapshot(1), keep=2)
    (tmp_path / ".epoch-0002.123").mkdir()
    latest = checkpoint.latest(tmp_path)
    assert latest is not None and latest.counters.epoch == 1


CONFIGS = [
    OptimConfig.model_validate({"name": name, "lr": 0.01, "weight_decay": 0.1, "head_lr_multiple": 3.0})
    for name in ("adamw", "adam", "sgd", "lamb")
]


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(backbone=nn.Linear(4, 6), norm=nn.LayerNorm(6), head=nn.Linear(6, 2)))


def train(trained: nn.Module, optimizer: torch.optim.Optimizer, config: OptimConfig, steps: range) -> None:
    for step in steps:
        optim.set_lr(optimizer, config.lr * optim.lr_factor(config, step, 6))
        optimizer.zero_grad()
        trained(torch.randn(3, 4, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_three_steps_a_checkpoint_and_three_more_are_bit_equal_to_six(tmp_path: Path, config: OptimConfig) -> None:
    undisturbed = model()
    whole = optim.build_optimizer(undisturbed, config)
    train(undisturbed, whole, config, range(6))

    first = model()
    optimizer = optim.build_optimizer(first, config)
    train(first, optimizer, config, range(3))
    tensors = {
        **checkpoint.with_prefix("model", first.state_dict()),
        **checkpoint.with_prefix("optim", checkpoint.flatten_optimizer(optimizer)),
    }
    checkpoint.write(tmp_path, Snapshot(Counters(epoch=1), tensors, {}), keep=1)
    read = checkpoint.latest(tmp_path)
    assert read is not None

    second = model()
    second.load_state_dict(checkpoint.under("model", read.tensors))
    resumed = optim.build_optimizer(second, config)
    checkpoint.restore_optimizer(resumed, checkpoint.under("optim", read.tensors))
    train(second, resumed, config, range(3, 6))
    for name, tensor in undisturbed.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    expected, got = (checkpoint.flatten_optimizer(each) for each in (whole, resumed))
    assert expected.keys() == got.keys()
    assert all(torch.equal(tensor, got[name]) for name, tensor in expected.items())


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_without_its_state_an_optimizer_does_not_go_on_where_it_was(config: OptimConfig) -> None:
    """The twin of the test above: equality there is not for want of a state."""
    undisturbed, other = model(), model()
    train(undisturbed, optim.build_optimizer(undisturbed, config), config, range(6))
    train(other, optim.build_optimizer(other, config), config, range(3))
    train(other, optim.build_optimizer(other, config), config, range(3, 6))
    assert not torch.equal(other.state_dict()["head.weight"], undisturbed.state_dict()["head.weight"])


def test_a_fresh_optimizer_has_a_state_too() -> None:
    for config in CONFIGS:
        optimizer = optim.build_optimizer(model(), config)
        assert checkpoint.flatten_optimizer(optimizer) == {}
        checkpoint.restore_optimizer(optimizer, {})
