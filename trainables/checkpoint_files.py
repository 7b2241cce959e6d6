"""A checkpoint's files: written whole or not at all, and believed only when they match their manifest; free of torch.

One folder a checkpoint: `state.safetensors` (weights, moving average, optimizer, random number generator),
`best.safetensors` (the weights of the best epoch so far), `state.json` (counters and metrics) and, written last,
`manifest.json` with the size and SHA-256 of the others. Nothing in it is a pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

STATE, BEST, COUNTERS, MANIFEST = "state.safetensors", "best.safetensors", "state.json", "manifest.json"


@dataclass(frozen=True)
class Counters:
    """Where a trial stands after `epoch` finished epochs."""

    epoch: int = 0
    step: int = 0
    best_score: float = -1.0
    """Of the task's objective (`ModelConfig.objective`), at `best_epoch`."""
    best_epoch: int = 0
    seconds: float = 0.0
    metrics: dict[str, Any] = field(default_factory=dict)
    """The last epoch's report: repeated on resume, in case it was saved but not received."""


class CheckpointError(RuntimeError):
    """A checkpoint's files do not match its manifest."""


def write(folder: Path, counters: Counters, write_tensors: Callable[[Path], None], *, keep: int) -> Path:
    """Write `folder/epoch-NNNN` beside and rename it, then remove all but the newest `keep` checkpoints."""
    final = folder / f"epoch-{counters.epoch:04d}"
    beside = folder / f".{final.name}.{os.getpid()}"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    write_tensors(beside)
    (beside / COUNTERS).write_text(json.dumps(asdict(counters), indent=1))
    manifest = {path.name: _fingerprint(path) for path in sorted(beside.iterdir())}
    (beside / MANIFEST).write_text(json.dumps(manifest, indent=1))
    shutil.rmtree(final, ignore_errors=True)  # an older attempt at the same epoch
    os.replace(beside, final)
    keep_newest(folder, keep)
    return final


def keep_newest(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what killed writers left."""
    for old in [*_folders(folder)[:-keep], *folder.glob(".epoch-*")]:
        shutil.rmtree(old, ignore_errors=True)


def check(folder: Path) -> Counters:
    """The counters of a whole checkpoint.

    Raises:
        CheckpointError: a file is missing or differs from the manifest; the message names it.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, expected in manifest.items():
            if _fingerprint(folder / name) != expected:
                raise CheckpointError(f"{folder / name} differs from its manifest.")
        return Counters(**json.loads((folder / COUNTERS).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder} is not a whole checkpoint: {error}") from error


def latest(folder: Path) -> tuple[Path, Counters] | None:
    """The newest whole checkpoint under `folder`; one that is not whole is passed over."""
    for candidate in reversed(_folders(folder)):
        try:
            return candidate, check(candidate)
        except CheckpointError:
            continue
    return None


def _folders(folder: Path) -> list[Path]:
    return sorted(folder.glob("epoch-*"))


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
