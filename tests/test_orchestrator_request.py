"""What a space may vary, and how the command that goes on is printed."""

from pathlib import Path

import pytest

from orchestrator.config.overrides import RequestError
from orchestrator.execution import request


def space(tmp_path: Path, parameter: str) -> str:
    file = tmp_path / "space.yaml"
    file.write_text(f"parameters:\n  {parameter}\n")
    return f"sweep.space={file}"


@pytest.mark.parametrize(
    "parameter",
    [
        "data.image_size: {choice: [32, 48]}",
        "train.epochs: {choice: [2, 4]}",
        "cluster.workers: {choice: [0, 2]}",
        "output.root: {choice: [a, b]}",
    ],
)
def test_what_all_trials_share_cannot_vary_within_a_sweep(tmp_path: Path, parameter: str) -> None:
    with pytest.raises(RequestError, match=f"{parameter.partition(':')[0]} is shared by all trials of a sweep"):
        request.check("sweep", ["digits", space(tmp_path, parameter)])


@pytest.mark.parametrize(
    "parameter",
    ["train.batch_size: {choice: [32, 64]}", "loss.gamma_neg: {float: [1, 4]}", "train.seed: {int: [0, 9]}"],
)
def test_what_a_trial_has_of_its_own_may_vary(tmp_path: Path, parameter: str) -> None:
    assert request.check("sweep", ["digits", space(tmp_path, parameter)]).space.parameters


def test_a_sampled_batch_that_leaves_a_worker_without_an_image_is_refused(tmp_path: Path) -> None:
    words = ["digits", "cluster.workers=3", space(tmp_path, "train.batch_size: {choice: [2, 64]}")]
    with pytest.raises(RequestError):
        request.check("sweep", words)


def test_the_command_that_goes_on_is_the_command_given(tmp_path: Path) -> None:
    checked = request.check("sweep", ["digits", "optim.lr=1e-3", "sweep.trials=5"])
    assert checked.again() == "python -m orchestrator.sweep digits optim.lr=1e-3 sweep.trials=5"
    assert checked.again(trials=10) == "python -m orchestrator.sweep digits optim.lr=1e-3 --trials 10"


def test_training_searches_nothing() -> None:
    checked = request.check("train", ["digits"])
    assert checked.experiment.sweep.trials == 1
    assert checked.experiment.sweep.pruner.name == "none"
    assert not checked.space.parameters
