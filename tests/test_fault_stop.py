"""Trials and drivers that are stopped: slowly, in another process, by a signal, by a second driver."""

from __future__ import annotations

import os
import re
import shlex
import signal
import time
from pathlib import Path

import pytest

from tests import fault_helpers as faults
from tests.fault_helpers import REPORT, Driver

pytestmark = [pytest.mark.fault, pytest.mark.timeout(280)]


def test_a_trial_that_takes_four_seconds_to_unwind_neither_hangs_nor_loses_the_next_one(tmp_path: Path) -> None:
    words = faults.words(tmp_path, "sweep.trials=6", "train.epochs=3", "sweep.pruner.group_by=")
    with Driver("tests.fault_helpers", *words) as driver:
        driver.wait_for(r"trial +0 .*started")
        started = time.monotonic()
        assert driver.finish() == 0, driver.output
        took_s = time.monotonic() - started
        pruned = driver.matching(r"trial +\d+ pruned +epoch 1/3")
    run = faults.run_folder(tmp_path)
    faults.check_ended(run, 6)
    assert len(pruned) >= 4  # of the first two, either may be the first to report
    assert [len(faults.metrics(run, number)) for number in range(2, 6)] == [1, 1, 1, 1]
    assert took_s >= 3 * faults.UNWINDING_S  # six trials, two at a time, each unwinds for 4 s
    print(f"6 trials, two at a time, each unwinding for {faults.UNWINDING_S:g} s: {took_s:.1f} s")


def test_a_trial_that_tune_drops_is_told_failed_and_the_sweep_ends(tmp_path: Path) -> None:
    words = faults.words(tmp_path, "sweep.trials=6", "train.epochs=3", "sweep.pruner.group_by=")
    impatient = faults.environment(TUNE_FUNCTION_THREAD_TIMEOUT_S="1")
    with Driver("tests.fault_helpers", *words, env=impatient) as driver:
        assert driver.finish() in (0, 3), driver.output
    run = faults.run_folder(tmp_path)
    faults.check_ended(run, 6, ("complete", "pruned", "failed"))
    found = faults.states(run)
    assert "failed" in found.values(), f"nothing was dropped, so nothing was tested: {found}"


def test_a_pruned_trial_with_a_worker_group_frees_its_workers_within_fifteen_seconds(tmp_path: Path) -> None:
    words = faults.words(tmp_path, "sweep.trials=3", "train.epochs=2", "model.head=gap", "cluster.workers=1")
    (tmp_path / "space.yaml").write_text(
        "parameters:\n  optim.lr: {float: [1e-7, 1e-2], log: true}\n"
        "points:\n  - {optim.lr: 1e-2}\n  - {optim.lr: 1e-7}\n"
    )
    with Driver("orchestrator.sweep", *words) as driver:

        def of_train(title: str = r"RayTrainWorker|PlacementGroupCleaner") -> set[int]:
            """A worker holds the CPU's memory, and the cleaner is the last to go: it gives the reserved CPU back."""
            return {pid for pid, found in driver.processes().items() if re.match(rf"ray::({title})", found)}

        driver.wait_for(r"trials at a time: 1 ")  # so the third trial needs the CPU that the pruned one held
        driver.wait_for(r"trial +1 .*started", timeout_s=90)
        before: set[int] = set()
        while not driver.matching(r"trial +1 pruned"):
            before |= of_train()
            time.sleep(0.05)
        verdict = time.monotonic()
        assert len(before) >= 2
        faults.wait_until(lambda: not of_train() & before, 15, lambda: f"still there: {driver.processes()}")
        freed_s = time.monotonic() - verdict
        faults.wait_until(lambda: of_train("RayTrainWorker"), 60, lambda: driver.output)
        next_s = time.monotonic() - verdict
    assert faults.states(faults.run_folder(tmp_path))[1] == "pruned"
    print(f"a pruned trial gave its CPU back after {freed_s:.1f} s; the next trial had its worker after {next_s:.1f} s")


def test_a_second_driver_on_a_run_folder_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    command = ["orchestrator.sweep", *faults.words(tmp_path, "sweep.trials=6", "train.epochs=6")]
    with Driver(*command) as first:
        first.wait_for(REPORT)
        with Driver(*command) as second:
            assert second.finish() == 2
            said = second.output
        assert first.process.poll() is None, "the first driver had ended before it could be disturbed"
        assert first.finish() == 0, first.output
    run = faults.run_folder(tmp_path)
    assert said.count("error: ") == 1 and str(run) in said
    assert f"is held by process {first.process.pid} on " in said and "Traceback" not in said
    faults.check_ended(run, 6)
    assert [len(faults.metrics(run, number)) for number in range(6)] == [
        row["epochs"] for row in sorted(faults.leaderboard(run), key=lambda row: row["number"])
    ]
    assert not (run / "lease.json").exists()


@pytest.mark.parametrize("interrupt", ["SIGTERM to the driver", "SIGINT to its group, as Ctrl-C sends it"])
def test_an_interrupted_sweep_exits_with_4_and_prints_the_command_that_goes_on(tmp_path: Path, interrupt: str) -> None:
    command = ["orchestrator.sweep", *faults.words(tmp_path, "sweep.trials=6", "train.epochs=6")]
    with Driver(*command) as driver:
        driver.wait_for(REPORT, count=4)
        asked = time.monotonic()
        if "group" in interrupt:
            os.killpg(driver.process.pid, signal.SIGINT)
        else:
            driver.process.send_signal(signal.SIGTERM)
        assert driver.finish(60) == 4, driver.output
        took_s = time.monotonic() - asked
        [last] = driver.matching("^interrupted; go on with: ")
        assert driver.lines[-1] == last
    run = faults.run_folder(tmp_path)
    left = faults.states(run)
    assert "running" in left.values() and "failed" not in left.values()
    assert not (run / "lease.json").exists()
    python, dash_m, *again = shlex.split(last.partition(": ")[2])
    assert (python, dash_m) == ("python", "-m")
    with Driver(*again) as driver:
        assert driver.finish() == 0, driver.output
        resumed = sum(state == "running" for state in left.values())
        assert f"{len(left) - resumed} trials have ended, {resumed} go on from their last checkpoint" in driver.output
    faults.check_ended(run, 6)
    print(f"{interrupt}: ended after {took_s:.1f} s, {resumed} trials resumed")


def test_a_finished_sweep_is_extended_by_trials_and_otherwise_trains_nothing(tmp_path: Path) -> None:
    words = faults.words(tmp_path, "train.epochs=2")
    with Driver("orchestrator.sweep", *words, "sweep.trials=3") as driver:
        assert driver.finish() == 0, driver.output
        [more] = driver.matching("^more trials: ")
    run = faults.run_folder(tmp_path)
    faults.check_ended(run, 3)
    kept = {number: faults.metrics(run, number) for number in range(3)}
    board = faults.leaderboard(run)

    with Driver("orchestrator.sweep", *words, "sweep.trials=3") as driver:  # the same command again
        assert driver.finish() == 0, driver.output
        assert "3 trials have ended" in driver.output and not driver.matching("started|ray: ")
    faults.check_ended(run, 3)
    assert faults.leaderboard(run) == board

    again = shlex.split(more.partition(": ")[2])[2:]
    assert again[-2:] == ["--trials", "6"]
    with Driver(*again[:-1], "5") as driver:
        assert driver.finish() == 0, driver.output
    faults.check_ended(run, 5)
    assert {number: faults.metrics(run, number) for number in range(3)} == kept
