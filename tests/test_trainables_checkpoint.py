from pathlib import Path

import pytest
import torch
from torch import nn

from trainables import checkpoint, checkpoint_files
from trainables.checkpoint import Snapshot
from trainables.checkpoint_files import CheckpointError, Counters


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


def test_the_optimizer_goes_on_where_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
    other = torch.optim.AdamW(model.parameters(), lr=0.1)
    checkpoint.restore_optimizer(other, checkpoint.flatten_optimizer(optimizer))
    for one, two in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)
