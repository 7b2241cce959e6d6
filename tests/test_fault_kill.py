"""SIGKILL, for real: to the driver of a sweep, to a trial, to the process that a trial runs in."""

from __future__ import annotations

import os
import random
import re
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
    """Epoch of each trial's newest checkpoint."""
    reported: dict[int, int]
    """Last epoch that each trial had reported."""
    frozen: dict[Path, bytes]
    """Reports and newest checkpoint of the trials that had ended."""


def look(run: Path) -> Left:
    """Note what lies there, and mark the checkpoints of interrupted trials."""
    states = faults.states(run)
    saved: dict[int, int] = {}
    frozen: dict[Path, bytes] = {}
    for number, state in states.items():
        saved[number], checkpoint_folder = faults.checkpoint_of(run, number)
        if state != "running":
            assert checkpoint_folder is not None
            files = [run / "trials" / f"{number:04d}" / "metrics.jsonl", *checkpoint_folder.iterdir()]
            frozen |= {path: path.read_bytes() for path in files}
        elif checkpoint_folder is not None:
            faults.mark(checkpoint_folder)
    reported = {number: max((line["epoch"] for line in faults.metrics(run, number)), default=0) for number in states}
    return Left(states, saved, reported, frozen)


def check_since(run: Path, left: Left) -> int:
    """Nothing that had ended was trained again, and what was interrupted went on; how many trials did."""
    assert {path: path.read_bytes() for path in left.frozen} == left.frozen
    went_on = 0
    for number, state in left.states.items():
        lines = faults.metrics(run, number)
        # A driver killed after it wrote a line and before it recorded the report writes the line again.
        epochs = list(dict.fromkeys(line["epoch"] for line in lines))
        assert epochs == list(range(1, len(epochs) + 1))
        new = [line for line in lines if line["epoch"] > max(left.reported[number], left.saved[number])]
        if state == "running" and left.saved[number] and new:
            assert all(line["seconds"] > faults.MARK_S for line in new), f"trial {number} started anew"
            went_on += 1
    return went_on


def test_a_sweep_that_is_killed_again_and_again_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    seed = int(os.environ.get("FAULT_SEED") or random.SystemRandom().randrange(10**6))
    print(f"FAULT_SEED={seed}")
    chance = random.Random(seed)
    command = ["orchestrator.sweep", *faults.words(tmp_path, f"sweep.trials={NUM_TRIALS}", f"train.epochs={EPOCHS}")]
    lefts: list[Left] = []
    alone_after_s = []
    for moment in ("anywhere", "at a report", "after a trial ended"):
        with Driver(*command) as driver:
            if moment == "anywhere":  # the data, Ray or the first trials may be half ready
                time.sleep(chance.uniform(0.5, 12))
            elif moment == "at a report":
                driver.wait_for(REPORT, count=chance.randint(1, 6))
            else:
                driver.wait_for(r"(complete|pruned) +epoch", count=chance.randint(1, 2))
            time.sleep(chance.uniform(0, 0.4))
            alone_after_s.append(driver.kill())
        if (tmp_path / "runs").exists() and list((tmp_path / "runs").glob("digits-*/study.journal")):
            lefts.append(look(faults.run_folder(tmp_path)))
    with Driver(*command) as driver:
        assert driver.finish() == 0, driver.output
        output = driver.output
    run = faults.run_folder(tmp_path)
    faults.check_ended(run, NUM_TRIALS)
    went_on = [check_since(run, left) for left in lefts]
    verdicts = faults.check_verdicts(run, EPOCHS, PRUNER)
    ended = [sum(state != "running" for state in left.states.values()) for left in lefts]
    said = re.search(r"(\d+) trials have ended", output)
    assert said and int(said[1]) >= ended[-1] > 0  # more, where a verdict was still to be told
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
            epoch, left = faults.checkpoint_of(faults.run_folder(folder), 0)
            assert left is not None and 2 <= epoch < 6
            faults.mark(left)
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
    deciding = ("epoch", "step", "best_score", "best_epoch")
    assert all(getattr(whole.counters, name) == getattr(resumed.counters, name) for name in deciding)
    curves = [
        {line["epoch"]: (line["loss"], line["lr"], line["mAP"], line["best_mAP"]) for line in faults.metrics(run, 0)}
        for run in runs
    ]
    assert len(curves[0]) == 6 and curves[0] == curves[1]
    assert faults.metrics(runs[1], 0)[-1]["seconds"] > faults.MARK_S  # it did go on, instead of starting anew
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
