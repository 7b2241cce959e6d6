"""Where one sweep lives: the only place that knows its file names. A writer writes beside and renames."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from datasets.schema import BadImage
from orchestrator.config.experiment import Experiment
from orchestrator.search.study import TrialRecord

SCRATCH = ("tune", "train")
"""Ray Tune's and Ray Train's own folders inside a run folder."""
RECORDED_VERSIONS = ("ray", "torch", "timm", "optuna", "pyarrow", "numpy", "simplejpeg")


@dataclass(frozen=True)
class RunFolder:
    """The layout of `<root>/<experiment>-<signature>/`."""

    path: Path

    @property
    def journal(self) -> Path:
        return self.path / "study.journal"

    @property
    def log(self) -> Path:
        """Ray's own messages."""
        return self.path / "ray.log"

    @property
    def bad_images(self) -> Path:
        return self.path / "bad_images.jsonl"

    def trial(self, number: int) -> Path:
        return self.path / "trials" / f"{number:04d}"

    def checkpoints(self, number: int) -> Path:
        return self.trial(number) / "checkpoints"

    def write_experiment(self, experiment: Experiment, *, data_digest: str, classes: Sequence[str]) -> list[str]:
        """What was run, and by which drivers: one entry is added for this one.

        Returns:
            What differs from the last driver's code and versions, a sentence each.
        """
        path = self.path / "experiment.json"
        earlier = json.loads(path.read_text())["drivers"] if path.exists() else []
        driver = {
            "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
            "git_commit": git_commit(),
            "versions": {"python": platform.python_version(), **versions()},
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(
            path,
            {
                "experiment": experiment.model_dump(mode="json"),
                "classes": list(classes),
                "data_digest": data_digest,
                "drivers": [*earlier, driver],
            },
        )
        return _changes(earlier[-1], driver) if earlier else []

    def write_bad_images(self, bad: Sequence[BadImage]) -> None:
        """What was skipped, and why; one JSON object a line."""
        write_text(self.bad_images, "".join(json.dumps(asdict(image)) + "\n" for image in bad))

    def write_leaderboard(self, records: Sequence[TrialRecord], objective: str) -> None:
        """Best first; the score under the name of the `objective` (mAP or top1)."""
        rows = [
            {objective if k == "score" else k: v for k, v in asdict(record).items() if k != "history"}
            for record in records
        ]
        write_json(self.path / "leaderboard.json", rows)

    def append_metrics(self, number: int, metrics: dict[str, Any]) -> None:
        """One line an epoch in `trials/NNNN/metrics.jsonl`."""
        folder = self.trial(number)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(metrics) + "\n")

    def best_metrics(self, number: int) -> dict[str, Any]:
        """The line of a trial's best epoch; empty where nothing was reported."""
        path = self.trial(number) / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return next((line for line in lines if line["epoch"] == lines[-1]["best_epoch"]), {})

    def remove_leftovers(self) -> None:
        """Remove what a killed driver was writing; only for the holder of the lease."""
        for leftover in self.path.glob(".best.*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def remove_scratch(self) -> None:
        """Remove what Ray wrote for itself: the journal and the checkpoints are all that a resume reads."""
        for name in SCRATCH:
            shutil.rmtree(self.path / name, ignore_errors=True)

    def write_error(self, number: int, error: str) -> None:
        self.trial(number).mkdir(parents=True, exist_ok=True)
        write_text(self.trial(number) / "error.txt", error)


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step: a reader sees the old text or the new one."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    os.replace(beside, path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    old = {"commit": before["git_commit"], **before["versions"]}
    new = {"commit": now["git_commit"], **now["versions"]}
    return [f"{name} {old.get(name)} -> {value}" for name, value in new.items() if old.get(name) != value]


def versions() -> dict[str, str]:
    """Installed versions of what decides numbers."""
    return {name: metadata.version(name) for name in RECORDED_VERSIONS}


def git_commit() -> str | None:
    """Commit of the code, with `+changes` when files differ from it; None outside a checkout."""
    root = Path(__file__).parents[2]
    try:
        run = ["git", "-C", str(root)]
        commit = subprocess.run([*run, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        dirty = subprocess.run([*run, "status", "--porcelain"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")
