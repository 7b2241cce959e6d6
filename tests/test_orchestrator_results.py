"""Reading run folders: what is taken, and what is left out with a reason."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import overrides
from orchestrator.execution.runfolder import RunFolder
from orchestrator.reporting import results
from tests.reporting_helpers import fake_provenance, record, write_run

COCO = overrides.load("coco_resnet50_224")
IMAGENET = overrides.load("imagenet_resnet50")


@pytest.fixture(autouse=True)
def _provenance(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_provenance(monkeypatch)


def reasons(root: Path) -> list[str]:
    found = results.read(root)
    assert found.trials == ()
    return [item.reason for item in found.left_out]


def edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_completed_trial_is_read_with_all_that_is_known_of_it(tmp_path: Path) -> None:
    records = [record(0.8, number=3, overrides={"optim.lr": 2e-4}), record(0.7, number=1)]
    folder = write_run(tmp_path, COCO, records, bundle_of=3)
    best, other = results.read(tmp_path).trials
    assert (best.number, best.score, best.num_evaluated) == (3, 0.8, 4952)
    assert best.images_per_s == 100.0
    assert best.date == datetime.now(UTC).date().isoformat()
    assert best.folder == folder.path
    assert (best.bundle, other.bundle) == (folder.path / "best", None)
    assert best.experiment == overrides.with_overrides(COCO, {"optim.lr": 2e-4})
    assert other.experiment == COCO


def test_top1_is_read_where_the_task_has_one_label(tmp_path: Path) -> None:
    write_run(tmp_path, IMAGENET, [record(0.765, epochs=120)], num_evaluated=50_000)
    assert [trial.score for trial in results.read(tmp_path).trials] == [0.765]


def test_trials_that_were_not_completed_are_no_results(tmp_path: Path) -> None:
    write_run(tmp_path, COCO, [record(0.9, state="pruned"), record(0.9, number=1, state="running")])
    assert reasons(tmp_path) == ["no trial is complete"]


def test_a_trial_that_was_only_evaluated_has_no_rate(tmp_path: Path) -> None:
    folder = write_run(tmp_path, COCO, [record(epochs=0)], changes={"train.epochs": 0}, images_per_s=())
    folder.append_metrics(0, {"epoch": 0, "num_evaluated": 4952, "mAP": 0.8})
    [trial] = results.read(tmp_path).trials
    assert (trial.images_per_s, trial.num_evaluated) == (None, 4952)


def test_a_torn_line_of_metrics_is_skipped(tmp_path: Path) -> None:
    folder = write_run(tmp_path, COCO, [record()])
    with (folder.trial(0) / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "num_eval')
    assert [trial.num_evaluated for trial in results.read(tmp_path).trials] == [4952]


def test_the_date_is_not_that_of_a_later_look(tmp_path: Path) -> None:
    folder = write_run(tmp_path, COCO, [record()])
    edit(folder.path / "experiment.json", lambda tree: tree["drivers"][0].update(started="2026-01-02T03:04:05+00:00"))
    folder.write_experiment(COCO, data_digest="d", classes=["x"])
    assert [trial.date for trial in results.read(tmp_path).trials] == ["2026-01-02"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("leaderboard.json", None, "there is no leaderboard.json"),
        ("leaderboard.json", "[{", "leaderboard.json cannot be read"),
        ("leaderboard.json", "{}", "leaderboard.json is no list of trials"),
        ("leaderboard.json", '["complete"]', "leaderboard.json is no list of trials"),
        ("leaderboard.json", '[{"state": "complete", "mAP": 0.9}]', "leaderboard.json is no list of trials"),
        ("leaderboard.json", "[]", "no trial is complete"),
        ("experiment.json", "[]", "experiment.json is not what a driver writes"),
        ("experiment.json", "{}", "experiment.json is not what a driver writes"),
        ("experiment.json", '{"experiment": {"name": "x", "data": {"pixels": 3}}}', "of this version: data.pixels"),
    ],
)
def test_a_file_that_is_not_a_drivers_is_not_believed(
    tmp_path: Path, name: str, content: str | None, reason: str
) -> None:
    path = write_run(tmp_path, COCO, [record()]).path / name
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    [said] = reasons(tmp_path)
    assert reason in said


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"mAP": 1.7}, "mAP must lie in"),
        ({"mAP": -0.1}, "mAP must lie in"),
        ({"mAP": None}, "mAP must lie in"),
        ({"mAP": True}, "mAP must lie in"),
        ({"mAP": "0.9"}, "mAP must lie in"),
        ({"mAP": float("nan")}, "mAP must lie in"),
        ({"mAP": 10**400}, "mAP must lie in"),
        ({"overrides": {"optim.speed": 1}}, "optim.speed is not a key"),
        ({"epochs": 39}, "complete, but after 39 of 40 epochs"),
        ({"number": 7}, "metrics.jsonl does not say"),
    ],
)
def test_a_row_that_cannot_be_right_is_not_believed(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    folder = write_run(tmp_path, COCO, [record()])
    edit(folder.path / "leaderboard.json", lambda rows: rows[0].update(change))
    [said] = reasons(tmp_path)
    assert reason in said


def test_top1_does_not_stand_in_for_map(tmp_path: Path) -> None:
    folder = write_run(tmp_path, COCO, [record()])
    RunFolder.write_leaderboard(folder, [record()], "top1")
    assert reasons(tmp_path) == ["trial 0: mAP must lie in [0, 1], but the leaderboard has None"]


def test_a_root_that_does_not_exist_has_no_results(tmp_path: Path) -> None:
    assert results.read(tmp_path / "none") == results.Results(tmp_path / "none")
