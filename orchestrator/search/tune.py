"""The study's adapters to Tune: Tune asks it for trials, and reports to it; neither of them decides.

Tune runs the scheduler before the searcher and skips the searcher's `on_trial_result` on a STOP, so the scheduler
reports. The Tuner pickles both, so they hold the name of the study's entry in this process and no handle.
An error of the study never escapes a hook, where Tune would lose track of its trials: it stops the sweep.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from ray.tune import Callback, Stopper
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from orchestrator.search.study import SweepStudy, TrialRecord

Result = TypeVar("Result")


@dataclass
class Desk:
    """Where the hooks find the study, and leave what they learnt."""

    study: SweepStudy
    max_concurrent: int
    on_start: Callable[[TrialRecord], None] = lambda record: None
    on_report: Callable[[int, dict[str, Any]], None] = lambda number, metrics: None
    on_end: Callable[[TrialRecord], None] = lambda record: None
    running: int = 0
    broken: BaseException | None = None
    stop_requested: bool = False

    def lose(self) -> None:
        """Another driver took the run folder over: stop, and write nothing more."""
        self.broken = self.broken or RuntimeError("another driver has taken over this run folder's lease")

    def show(self, action: Callable[[], None]) -> None:
        """Run what only shows or writes down; its error goes to the log and disturbs no trial."""
        try:
            action()
        except Exception:
            traceback.print_exc()

    def guard(self, action: Callable[[], Result], otherwise: Result) -> Result:
        """Run an action of a hook; the first error is kept for the driver and ends the sweep."""
        if self.broken is not None:
            return otherwise
        try:
            return action()
        except Exception as error:
            self.broken = error
            return otherwise


_DESKS: dict[str, Desk] = {}


def open_desk(name: str, desk: Desk) -> None:
    """Make `desk` reachable for the hooks of this process under `name`."""
    _DESKS[name] = desk


class StudySearcher(Searcher):
    """Hands the study's next trial to Tune, at most `max_concurrent` at a time."""

    def __init__(self, desk: str) -> None:
        super().__init__(metric=_DESKS[desk].study.objective, mode="max")
        self._desk = desk

    def set_search_properties(self, *args: Any, **kwargs: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:  # a configuration, None for "not now", or FINISHED
        desk = _DESKS[self._desk]
        if desk.stop_requested or desk.broken:
            return Searcher.FINISHED
        if desk.running >= desk.max_concurrent:
            return None
        record = desk.guard(desk.study.next_trial, None)
        if record is None:
            return Searcher.FINISHED
        desk.running += 1
        desk.show(partial(desk.on_start, record))
        return {"number": record.number, "overrides": record.overrides}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """The scheduler and the callback tell the study; Tune's result carries no more."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing to save: the state is the study's journal."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class StudyScheduler(FIFOScheduler):
    """Reports to the study and carries out its verdict."""

    def __init__(self, desk: str) -> None:
        super().__init__()
        self._desk = desk

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        desk, number = _DESKS[self._desk], trial.config["number"]
        if desk.study.objective not in result:
            return TrialScheduler.CONTINUE
        if not desk.study.has_report(number, int(result["epoch"])):  # a resumed trial repeats its last ones
            desk.show(partial(desk.on_report, number, result))
        pruned = desk.guard(lambda: desk.study.report(number, result), True)
        return TrialScheduler.STOP if pruned else TrialScheduler.CONTINUE


class StudyCallback(Callback):
    """Closes what Tune ends: a trial that Tune no longer runs is never left running in the study."""

    def __init__(self, desk: str) -> None:
        self._desk = desk
        self._closed: set[str] = set()

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        desk = _DESKS[self._desk]
        for trial in trials:
            if trial.is_finished() and trial.trial_id not in self._closed:
                self._closed.add(trial.trial_id)
                desk.running -= 1
                desk.guard(partial(self._close, desk, trial), None)

    def _close(self, desk: Desk, trial: Trial) -> None:
        number = trial.config["number"]
        if trial.status == Trial.ERROR:
            desk.study.fail(number, (trial.error_file and _read(trial.error_file)) or "Tune gave no reason.")
        elif not (desk.stop_requested or desk.broken):
            desk.study.fail(number, "Tune ended the trial before its last epoch and gave no reason.")
        desk.show(partial(desk.on_end, desk.study.records()[number]))

    def __getstate__(self) -> dict[str, Any]:
        return {"_desk": self._desk, "_closed": set()}


class StopWhenAsked(Stopper):
    """Ends the sweep when the desk asks for it: an interrupt, or a study that broke."""

    def __init__(self, desk: str) -> None:
        self._desk = desk

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        desk = _DESKS[self._desk]
        return desk.stop_requested or desk.broken is not None


def _read(path: str) -> str:
    with open(path, errors="replace") as file:
        return file.read()
