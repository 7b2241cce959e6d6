"""SIGKILL, for real: to the driver of a sweep, to a trial, to the process that a trial runs in."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from orchestrator.config.experiment import PrunerConfig
from tests import fault_helpers as faults
from tests.fault_helpers import REPORT, Driver
from trainables import checkpoint

pytestmark = [pytest.mark.fault, pytest.mark.timeout(280)]

NUM_TRIALS, EPOCHS = 8, 5
PRUNER = PrunerConfig(grace=1, reduction=3)


@dataclass(frozen=True)
class Left:
    """What a killed driver left behind."""

    states: dict[int, str]
    saved: dict[int, int]
    """Newest checkpoint of each trial."""
    lines: dict[int, int]
    """Reports of each trial."""
    frozen: dict[str, bytes]
    """Files of the trials that had ended."""


def look(run: Path) -> Left:
    states = faults.states(run)
    return Left(
        states,
        {number: faults.saved_epoch(run, number) for number in states},
        {number: len(faults.metrics(run, number)) for number in states},
        {
            str(path.relative_to(run)): path.read_bytes()
            for number, state in states.items()
            if state != "running"
            for path in (run / "trials" / f"{number:04d}").rglob("*")
            if path.is_file()
        },
    )


def check_since(run: Path, left: Left) -> int:
    """Nothing that had ended was touched, and what was interrupted went on; how many did."""
    assert {name: (run / name).read_bytes() for name in left.frozen} == left.frozen
    went_on = 0
    for number, state in left.states.items():
        new = faults.metrics(run, number)[left.lines[number] :]
        if state != "running":
            assert new == []
        elif new:  # its first report repeats that of its checkpoint, the next ones follow without a gap
            first = max(1, left.saved[number])
            assert [line["epoch"] for line in new][:1] == [first], (
                f"trial {number} went on from epoch {new[0]['epoch']}"
            )
            went_on += left.saved[number] > 0
    return went_on


def test_a_sweep_that_is_killed_twice_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    seed = int(os.environ.get("FAULT_SEED") or random.SystemRandom().randrange(10**6))
    print(f"FAULT_SEED={seed}")
    chance = random.Random(seed)
    command = ["orchestrator.sweep", *faults.words(tmp_path, f"sweep.trials={NUM_TRIALS}", f"train.epochs={EPOCHS}")]
    lefts = []
    with Driver(*command) as driver:
        driver.wait_for(REPORT, count=chance.randint(1, 6))
        time.sleep(chance.uniform(0, 0.4))
        alone_after_s = [driver.kill()]
    run = faults.run_folder(tmp_path)
    lefts.append(look(run))
    with Driver(*command) as driver:
        driver.wait_for("going on in")
        if chance.random() < 0.8:
            driver.wait_for(REPORT, count=chance.randint(1, 4))
            time.sleep(chance.uniform(0, 0.4))
        else:  # before any trial has reported
            time.sleep(chance.uniform(0, 3))
        alone_after_s.append(driver.kill())
    lefts.append(look(run))
    with Driver(*command) as driver:
        assert driver.finish() == 0, driver.output
        output = driver.output
    faults.check_ended(run, NUM_TRIALS)
    went_on = [check_since(run, left) for left in lefts]
    verdicts = faults.check_verdicts(run, EPOCHS, PRUNER)
    ended = [sum(state != "running" for state in left.states.values()) for left in lefts]
    assert f"{ended[1]} trials have ended" in output or f"{ended[1] + 1} trials have ended" in output
    print(
        f"ended before each kill: {ended}; interrupted ones that went on from a checkpoint: {went_on}; "
        f"verdicts at rungs: {verdicts}; seconds until nothing was left: {[round(s, 1) for s in alone_after_s]}"
    )


def test_a_trial_killed_and_resumed_equals_an_undisturbed_one_bit_for_bit(tmp_path: Path) -> None:
    runs = []
    for name, killed in (("undisturbed", False), ("killed", True)):
        folder = tmp_path / name
        folder.mkdir()
        command = ["orchestrator.train", *faults.words(folder, "train.epochs=6")]
        if killed:
            with Driver(*command) as driver:
                driver.wait_for(r"running +epoch 2/6")
                time.sleep(random.uniform(0, 0.3))
                driver.kill()
            assert 2 <= faults.saved_epoch(faults.run_folder(folder), 0) < 6
        with Driver(*command) as driver:
            assert driver.finish() == 0, driver.output
        runs.append(faults.run_folder(folder))
    assert runs[0].name == runs[1].name
    whole, resumed = (checkpoint.latest(run / "trials/0000/checkpoints") for run in runs)
    assert whole is not None and resumed is not None
    prefixes = {name.partition("/")[0] for name in whole.tensors}
    assert prefixes == {"model", "ema", "optim", "rng"}
    for ours, theirs in ((whole.tensors, resumed.tensors), (whole.best, resumed.best)):
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    deciding = ("epoch", "step", "best_map", "best_epoch")
    assert all(getattr(whole.counters, name) == getattr(resumed.counters, name) for name in deciding)
    curves = [
        {line["epoch"]: (line["loss"], line["lr"], line["mAP"], line["best_mAP"]) for line in faults.metrics(run, 0)}
        for run in runs
    ]
    assert len(curves[0]) == 6 and curves[0] == curves[1]
    models = [(run / "best/model.safetensors").read_bytes() for run in runs]
    assert models[0] == models[1]


def test_a_trial_whose_process_is_killed_fails_and_the_sweep_goes_on(tmp_path: Path) -> None:
    command = ["orchestrator.sweep", *faults.words(tmp_path, "sweep.trials=6", "train.epochs=8")]
    with Driver(*command) as driver:
        driver.wait_for(REPORT, count=3)
        training = [pid for pid, title in driver.processes().items() if title.startswith("ray::ImplicitFunc")]
        assert training, driver.processes()
        os.kill(training[0], signal.SIGKILL)
        assert driver.finish() == 0, driver.output
    run = faults.run_folder(tmp_path)
    faults.check_ended(run, 6, ("complete", "pruned", "failed"))
    [failed] = [row for row in faults.leaderboard(run) if row["state"] == "failed"]
    assert "died" in failed["error"].lower() or "actor" in failed["error"].lower()
    assert (run / "trials" / f"{failed['number']:04d}" / "error.txt").read_text() == failed["error"]
