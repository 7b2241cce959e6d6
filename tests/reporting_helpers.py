"""Run folders as a driver writes them, without a driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.experiment import Experiment
from orchestrator.config.overrides import with_overrides
from orchestrator.execution import runfolder
from orchestrator.execution.runfolder import RunFolder
from orchestrator.search.study import TrialRecord


def fake_provenance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking Git and the installed packages takes longer than all else in a test."""
    monkeypatch.setattr(runfolder, "git_commit", lambda: "aaa")
    monkeypatch.setattr(runfolder, "versions", lambda: {"torch": "2"})


def record(score: float | None = 0.8, *, number: int = 0, state: str = "complete", **fields: Any) -> TrialRecord:
    """A trial of 40 epochs, unless `fields` say otherwise."""
    return TrialRecord(number, state, **{"overrides": {}, "epochs": 40, "score": score, **fields})


def write_run(
    root: Path,
    experiment: Experiment,
    records: Sequence[TrialRecord],
    *,
    changes: Mapping[str, Any] | None = None,
    suffix: str = "0a1b2c3d",
    num_evaluated: int = 4952,
    images_per_s: Sequence[float] = (90.0, 100.0, 120.0),
    digest: str = "d1d2d3d4e5",
    bundle_of: int | None = None,
) -> RunFolder:
    """A finished run of `experiment` with `changes`; each record has a line of metrics for each `images_per_s`."""
    folder = RunFolder(root / f"{experiment.name}-{suffix}")
    folder.path.mkdir(parents=True)
    run = with_overrides(experiment, changes or {})
    folder.write_experiment(run, data_digest=digest, classes=["x"])
    folder.write_leaderboard(records, run.model.objective)
    for item in records:
        for epoch, rate in enumerate(images_per_s, start=1):
            metrics = {"epoch": epoch, "num_evaluated": num_evaluated, "images_per_s": rate}
            folder.append_metrics(item.number, metrics | {run.model.objective: item.score})
    if bundle_of is not None:
        best = folder.path / "best"
        best.mkdir()
        runfolder.write_json(best / "bundle.json", {"trial": bundle_of})
        (best / "model.safetensors").touch()
    return folder
