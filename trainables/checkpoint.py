"""What a trial needs to go on as if nothing had happened: tensors and counters, to and from disk.

`checkpoint_files` says what lies where.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from trainables import checkpoint_files
from trainables.checkpoint_files import BEST, STATE, Counters

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint in memory. `tensors` holds `model/`, `ema/`, `optim/` and `rng` by prefix."""

    counters: Counters
    tensors: Tensors
    best: Tensors


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> Tensors:
    """`{"<parameter index>/<name>": tensor}`, and `"group/<index>/<name>"` for what a whole group counts (LAMB's step).

    A group's hyper-parameters are no tensors: they are rebuilt from the configuration.
    """
    whole = optimizer.state_dict()
    flat = {f"{index}/{name}": value for index, slots in whole["state"].items() for name, value in slots.items()}
    for index, group in enumerate(whole["param_groups"]):
        flat |= {f"group/{index}/{name}": value for name, value in group.items() if isinstance(value, torch.Tensor)}
    return flat


def restore_optimizer(optimizer: torch.optim.Optimizer, flat: Tensors) -> None:
    """Inverse of `flatten_optimizer`, on an optimizer built for the same model."""
    groups = optimizer.state_dict()["param_groups"]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in flat.items():
        owner, name = key.rsplit("/", 1)
        if owner.startswith("group/"):
            groups[int(owner.removeprefix("group/"))][name] = value
        else:
            state.setdefault(int(owner), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def with_prefix(prefix: str, tensors: Tensors) -> Tensors:
    """`tensors` under `prefix/`."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors under `prefix/`, without it."""
    start = f"{prefix}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def write(folder: Path, snapshot: Snapshot, *, keep: int) -> Path:
    """Write `folder/epoch-NNNN`, and keep the newest `keep` checkpoints."""

    def write_tensors(into: Path) -> None:
        save_file(_contiguous(snapshot.tensors), into / STATE)
        save_file(_contiguous(snapshot.best), into / BEST)

    return checkpoint_files.write(folder, snapshot.counters, write_tensors, keep=keep)


def latest(folder: Path) -> Snapshot | None:
    """The newest whole checkpoint under `folder`, or None."""
    found = checkpoint_files.latest(folder)
    if found is None:
        return None
    path, counters = found
    return Snapshot(counters, load_file(path / STATE), load_file(path / BEST))


def _contiguous(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
