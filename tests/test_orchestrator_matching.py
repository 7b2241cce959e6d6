"""Which trial may stand in a row: shrunk ones not, differing ones marked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import overrides
from orchestrator.config.experiment import Experiment
from orchestrator.reporting import results
from orchestrator.reporting.matching import Match, match
from orchestrator.reporting.rows import COCO, IMAGENET
from tests.reporting_helpers import fake_provenance, record, write_run

ROW = overrides.load("coco_resnet50_224")
WEIGHTS = overrides.load("coco_resnet50_vd_224")


@pytest.fixture(autouse=True)
def _provenance(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_provenance(monkeypatch)


def found(root: Path, row: Experiment = ROW) -> Match:
    return match(row, COCO, results.read(root))


def run_with(root: Path, changes: dict[str, Any], row: Experiment = ROW) -> Match:
    write_run(root, row, [record()], changes=changes)
    return found(root, row)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data.image_size": 64}, "data.image_size=64, the row's is 224"),
        ({"model.backbone": "resnet18"}, "model.backbone=resnet18, the row's is resnet50"),
        ({"model.head": "gap", "model.query_num": None}, "model.head=gap, the row's is ml_decoder"),
        ({"model.query_num": 20}, "model.query_num=20, the row's is 80"),
        ({"model.embed_dim": 64}, "model.embed_dim=64"),
        ({"model.pretrained": False}, "model.pretrained=false"),
        ({"data.train_split": "val2017"}, "data.train_split=val2017"),
    ],
)
def test_another_model_or_size_does_not_count(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    result = run_with(tmp_path, changes)
    assert result.trial is None
    [said] = result.not_counted
    assert reason in said and said.startswith("coco_resnet50_224-0a1b2c3d, trial 0: ")


def test_fewer_epochs_do_not_count(tmp_path: Path) -> None:
    write_run(tmp_path, ROW, [record(epochs=2)], changes={"train.epochs": 2})
    result = found(tmp_path)
    assert result.trial is None
    assert [said.partition(": ")[2] for said in result.not_counted] == ["2 of 40 epochs"]


@pytest.mark.parametrize("num_evaluated", [40, 4900, 5001, 118_287])
def test_a_part_of_the_images_does_not_count(tmp_path: Path, num_evaluated: int) -> None:
    write_run(tmp_path, ROW, [record()], num_evaluated=num_evaluated)
    result = found(tmp_path)
    assert result.trial is None
    [said] = result.not_counted
    assert f"judged on {num_evaluated} images, COCO 2017, multi-label has 4952 to 5000" in said


@pytest.mark.parametrize("num_evaluated", [4952, 5000, 4910])
def test_unlabelled_images_may_be_kept_or_not_and_a_few_unreadable(tmp_path: Path, num_evaluated: int) -> None:
    write_run(tmp_path, ROW, [record()], num_evaluated=num_evaluated)
    assert found(tmp_path).trial is not None


def test_another_way_to_train_counts_and_is_marked(tmp_path: Path) -> None:
    changes = {"optim.lr": 2e-4, "train.epochs": 60, "model.dropout": 0.2, "augment.flip": 0.5}
    write_run(tmp_path, ROW, [record(epochs=60)], changes=changes)
    result = found(tmp_path)
    assert result.trial is not None and result.not_counted == ()
    assert set(result.differs) == {"optim.lr=0.0002", "train.epochs=60", "model.dropout=0.2", "augment.flip=0.5"}


def test_where_it_ran_makes_no_difference(tmp_path: Path) -> None:
    changes = {"data.root": "/data", "cluster.workers": 2, "output.root": "/runs", "train.eval_batch_size": 8}
    result = run_with(tmp_path, changes)
    assert (result.trial is not None, result.differs, result.not_counted) == (True, (), ())


def test_the_best_counted_trial_of_all_runs_stands_in_the_row(tmp_path: Path) -> None:
    sampled = {"overrides": {"model.head": "gap", "model.query_num": None}}
    write_run(tmp_path, ROW, [record(0.9, **sampled), record(0.7, number=1)], suffix="a")
    write_run(tmp_path, ROW, [record(0.75, number=4, overrides={"optim.lr": 3e-4})], suffix="b")
    write_run(tmp_path, ROW, [record(0.5)], suffix="c")
    result = found(tmp_path)
    assert result.trial is not None
    assert (result.trial.score, result.trial.number, result.differs) == (0.75, 4, ("optim.lr=0.0003",))
    assert len(result.not_counted) == 1


def test_runs_of_other_experiments_say_nothing(tmp_path: Path) -> None:
    for name in ("coco_resnet50_224_gap", "coco_resnet50_224-b"):
        write_run(tmp_path, ROW.model_copy(update={"name": name}), [record()])
    broken = tmp_path / "coco_resnet50_224_gap-ffffffff"
    broken.mkdir()
    (broken / "experiment.json").write_text("{")
    assert found(tmp_path) == Match()


def test_a_run_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    folder = write_run(tmp_path, ROW, [record()])
    (folder.path / "leaderboard.json").unlink()
    assert found(tmp_path).not_counted == ("coco_resnet50_224-0a1b2c3d: there is no leaderboard.json",)


def test_weights_are_known_by_their_files_name(tmp_path: Path) -> None:
    name = str(WEIGHTS.model.weights)
    write_run(tmp_path, WEIGHTS, [record(0.8)], changes={"model.weights": f"/zoo/{name}"}, suffix="a")
    assert found(tmp_path, WEIGHTS).differs == ()
    write_run(tmp_path, WEIGHTS, [record(0.81)], changes={"model.weights": "/zoo/other.pth"}, suffix="b")
    assert found(tmp_path, WEIGHTS).differs == ("model.weights=other.pth",)
    write_run(tmp_path, WEIGHTS, [record(0.82)], changes={"model.weights": None}, suffix="c")
    result = found(tmp_path, WEIGHTS)
    assert result.trial is not None and result.trial.score == 0.81
    assert "model.weights=null" in result.not_counted[0]


def test_a_row_that_only_evaluates_needs_no_epochs(tmp_path: Path) -> None:
    row = overrides.load("imagenet_resnet50_a1")
    write_run(tmp_path, row, [record(0.8038, epochs=0)], num_evaluated=50_000)
    assert match(row, IMAGENET, results.read(tmp_path)).trial is not None
