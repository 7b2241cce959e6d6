"""What is written beside the study: provenance, metrics, the bundle, and the line that says why a trial failed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from orchestrator.config import overrides
from orchestrator.execution import runfolder
from orchestrator.execution.bundle import write_best
from orchestrator.execution.outcome import best_of
from orchestrator.execution.progress import reason
from orchestrator.execution.runfolder import RunFolder
from orchestrator.search.study import TrialRecord
from trainables import checkpoint
from trainables.checkpoint import Snapshot
from trainables.checkpoint_files import Counters


def test_each_driver_is_recorded_and_a_change_of_code_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, experiment = RunFolder(tmp_path), overrides.load("digits")
    monkeypatch.setattr(runfolder, "git_commit", lambda: "aaa")
    assert folder.write_experiment(experiment, data_digest="d", classes=["x"]) == []
    assert folder.write_experiment(experiment, data_digest="d", classes=["x"]) == []
    monkeypatch.setattr(runfolder, "git_commit", lambda: "bbb")
    assert folder.write_experiment(experiment, data_digest="d", classes=["x"]) == ["commit aaa -> bbb"]
    written = json.loads((tmp_path / "experiment.json").read_text())
    assert [driver["git_commit"] for driver in written["drivers"]] == ["aaa", "aaa", "bbb"]
    assert overrides.load("digits", sampled={"optim.lr": written["experiment"]["optim"]["lr"]}) == experiment


def test_metrics_are_a_line_an_epoch(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for epoch in (1, 2):
        folder.append_metrics(7, {"epoch": epoch, "mAP": 0.5})
    lines = (tmp_path / "trials" / "0007" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


def test_the_bundle_holds_the_best_weights_and_what_is_needed_to_use_them(tmp_path: Path) -> None:
    folder, experiment = RunFolder(tmp_path), overrides.load("digits")
    record = TrialRecord(3, "complete", {"model.backbone": "resnet10t", "model.head": "gap"}, 8, 0.9)
    assert write_best(folder, experiment, record, ["x", "y"]) is None  # it left no checkpoint
    snapshot = Snapshot(
        Counters(epoch=8, best_score=0.9, best_epoch=7), {"model/w": torch.zeros(2)}, {"w": torch.ones(2)}
    )
    checkpoint.write(folder.checkpoints(3), snapshot, keep=1)
    for _ in range(2):  # the second replaces the first
        best = write_best(folder, experiment, record, ["x", "y"])
    assert best == tmp_path / "best"
    assert torch.equal(load_file(best / "model.safetensors")["w"], torch.ones(2))
    bundle = json.loads((best / "bundle.json").read_text())
    assert (bundle["model"]["backbone"], bundle["model"]["num_classes"], bundle["classes"]) == (
        "resnet10t",
        2,
        ["x", "y"],
    )
    assert (bundle["epoch"], bundle["mAP"], bundle["image_size"]) == (7, 0.9, 48)


def test_the_best_is_a_complete_trial_where_there_is_one() -> None:
    pruned, complete = TrialRecord(0, "pruned", {}, 1, 0.8), TrialRecord(1, "complete", {}, 8, 0.7)
    assert best_of([pruned, complete]) is complete
    assert best_of([pruned]) is pruned
    assert best_of([TrialRecord(2, "failed", {}, 1, 0.9)]) is None


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("Traceback\n  File x\ntrainables.fit.Diverged: the loss must stay finite\n", "the loss must stay finite"),
        (
            "ray.exceptions.RayTaskError: a\ndatasets.schema.DataError: image 7 is bad\nTo retry, set x\n",
            "image 7 is bad",
        ),
        ("no traceback at all", "no traceback at all"),
    ],
)
def test_the_line_that_says_what_was_wrong_is_shown(error: str, line: str) -> None:
    assert reason(error).endswith(line)
