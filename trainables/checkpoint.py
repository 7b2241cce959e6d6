"""What a trial needs to go on as if nothing had happened, on disk.

One folder a checkpoint: `state.safetensors` (weights, moving average, optimizer, random number generator),
`best.safetensors` (the weights of the best epoch so far), `state.json` (counters and metrics) and, written last,
`manifest.json` with the size and SHA-256 of the others. Nothing in it is a pickle. A reader believes nothing
whose manifest does not match, and falls back to the checkpoint before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

MANIFEST = "manifest.json"
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Counters:
    """Where a trial stands after `epoch` finished epochs."""

    epoch: int = 0
    step: int = 0
    best_map: float = -1.0
    best_epoch: int = 0
    seconds: float = 0.0
    metrics: dict[str, Any] = field(default_factory=dict)
    """The last epoch's report: repeated on resume, in case it was saved but not received."""


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint in memory. `tensors` holds `model/`, `ema/`, `optim/` and `rng` by prefix."""

    counters: Counters
    tensors: Tensors
    best: Tensors


class CheckpointError(RuntimeError):
    """A checkpoint's files do not match its manifest."""


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> Tensors:
    """`{"<parameter index>/<name>": tensor}`; hyper-parameters are rebuilt from the configuration."""
    state = optimizer.state_dict()["state"]
    return {f"{index}/{name}": value for index, slots in state.items() for name, value in slots.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, flat: Tensors) -> None:
    """Inverse of `flatten_optimizer`, on an optimizer built for the same model."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in flat.items():
        index, name = key.split("/")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def with_prefix(prefix: str, tensors: Tensors) -> Tensors:
    """`tensors` under `prefix/`."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors under `prefix/`, without it."""
    start = f"{prefix}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def write(folder: Path, snapshot: Snapshot, *, keep: int) -> Path:
    """Write `folder/epoch-NNNN` beside and rename it, then remove all but the newest `keep` checkpoints."""
    final = folder / f"epoch-{snapshot.counters.epoch:04d}"
    beside = folder / f".{final.name}.{os.getpid()}"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    save_file(_contiguous(snapshot.tensors), beside / "state.safetensors")
    save_file(_contiguous(snapshot.best), beside / "best.safetensors")
    (beside / "state.json").write_text(json.dumps(asdict(snapshot.counters), indent=1))
    manifest = {path.name: _fingerprint(path) for path in sorted(beside.iterdir())}
    (beside / MANIFEST).write_text(json.dumps(manifest, indent=1))
    shutil.rmtree(final, ignore_errors=True)  # an older attempt at the same epoch
    os.replace(beside, final)
    for old in _folders(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def read(folder: Path) -> Snapshot:
    """Read one checkpoint folder.

    Raises:
        CheckpointError: a file is missing or differs from the manifest; the message names it.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, expected in manifest.items():
            if _fingerprint(folder / name) != expected:
                raise CheckpointError(f"{folder / name} differs from its manifest.")
        counters = Counters(**json.loads((folder / "state.json").read_text()))
        return Snapshot(
            counters, load_file(folder / "state.safetensors"), load_file(folder / "best.safetensors")
        )
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder} is not a whole checkpoint: {error}") from error


def latest(folder: Path) -> Snapshot | None:
    """The newest whole checkpoint under `folder`, or None."""
    for candidate in reversed(_folders(folder)):
        try:
            return read(candidate)
        except CheckpointError:
            continue
    return None


def _folders(folder: Path) -> list[Path]:
    return sorted(folder.glob("epoch-*"))


def _contiguous(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
