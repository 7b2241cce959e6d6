"""The one place of decision: an Optuna study in a journal inside the run folder.

Everything that was decided or reported is in the journal before anybody acts on it, so a driver that is killed
reopens to the same state. Samplers are rebuilt for every ask with a seed from (sweep seed, trial number): one
that is kept would repeat its first suggestions after a restart.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from orchestrator.config.experiment import Experiment
from orchestrator.search.pruner import Report, should_prune
from search_spaces.space import ResolvedSpace

STATES = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


@dataclass(frozen=True)
class TrialRecord:
    """What the study knows of one trial; a row of the leaderboard."""

    number: int
    state: str
    overrides: dict[str, Any]
    epochs: int = 0
    score: float | None = None
    """The best value of the objective so far, in [0, 1]."""
    seconds: float = 0.0
    error: str | None = None
    history: dict[int, float] = field(default_factory=dict)
    """Epoch -> the objective's value."""


class SweepStudy:
    """The search of one sweep. One driver holds it at a time (`orchestrator.execution.lease`)."""

    def __init__(self, journal: Path, experiment: Experiment, space: ResolvedSpace, num_trials: int) -> None:
        self._experiment, self._space, self._num_trials = experiment, space, num_trials
        drop_torn_line(journal)
        storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=_LeaseIsEnough(str(journal))))
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            storage=storage, study_name=experiment.name, direction="maximize", load_if_exists=True
        )
        enqueued = len(self._study.get_trials(deepcopy=False))  # fewer than all: killed in this loop
        for point in space.points()[enqueued:]:
            self._study.enqueue_trial(point)
        # A driver killed between a report and its verdict left the verdict to us.
        for trial in self._running():
            if trial.intermediate_values:
                self._decide(trial.number, max(trial.intermediate_values))
        self._interrupted = [trial.number for trial in self._running()]
        self.resumed = tuple(self._interrupted)

    @property
    def objective(self) -> str:
        """The metric that is maximised."""
        return self._experiment.model.objective

    def next_trial(self) -> TrialRecord | None:
        """The next trial to run: first those that were interrupted, then new ones; None when all are asked."""
        if self._interrupted:
            number = self._interrupted.pop(0)
            self._seed_sampler(number)
            trial = optuna.Trial(self._study, self._frozen(number)._trial_id)
        elif len(self._trials()) < self._num_trials:
            self._seed_sampler(len(self._trials()))
            trial = self._study.ask()
        else:
            return None
        overrides = trial.user_attrs.get("overrides")
        if overrides is None:  # new, or killed while it was being suggested: values suggested before are kept
            overrides = self._space.suggest(trial)
            trial.set_user_attr("overrides", overrides)
        return self._record(self._frozen(trial.number))

    def has_report(self, number: int, epoch: int) -> bool:
        """Whether this epoch of a trial has been recorded."""
        return epoch in self._frozen(number).intermediate_values

    def report(self, number: int, metrics: Mapping[str, Any]) -> bool:
        """Record one epoch of a trial and decide; True when it should stop. A repeated report changes nothing.

        The last epoch completes the trial, and a trial that should stop is pruned, before this returns.
        """
        trial, epoch = self._frozen(number), int(metrics["epoch"])
        if trial.state != TrialState.RUNNING:
            return trial.state == TrialState.PRUNED
        if epoch not in trial.intermediate_values:
            detail = {
                "order": len(self._history()),
                "seconds": metrics["seconds"],
                "best": metrics[f"best_{self.objective}"],
            }
            handle = optuna.Trial(self._study, trial._trial_id)
            handle.set_user_attr(f"report.{epoch}", detail)
            handle.report(float(metrics[self.objective]), step=epoch)
        return self._decide(number, epoch)

    def _decide(self, number: int, epoch: int) -> bool:
        """The verdict on a recorded report, acted on in the study; True when the trial is pruned."""
        history, train = self._history(), self._experiment.train
        judged = next(r for r in history if r.number == number and r.epoch == epoch)
        if epoch >= train.epochs:
            self._study.tell(number, self._frozen(number).user_attrs[f"report.{epoch}"]["best"])
            return False
        if should_prune(self._experiment.sweep.pruner, train.epochs, history, judged):
            self._study.tell(number, state=TrialState.PRUNED)
            return True
        return False

    def fail(self, number: int, error: str) -> None:
        """Record that a trial failed; a trial that has ended already stays as it is."""
        trial = self._frozen(number)
        if trial.state == TrialState.RUNNING:
            optuna.Trial(self._study, trial._trial_id).set_user_attr("error", error)
            self._study.tell(number, state=TrialState.FAIL)

    def records(self) -> list[TrialRecord]:
        """All trials that were asked for, by number."""
        return [self._record(trial) for trial in self._trials()]

    def leaderboard(self) -> list[TrialRecord]:
        """Best first: complete trials before pruned ones of the same score, then running, failed last."""
        ranks = {"complete": 0, "pruned": 1, "running": 2, "failed": 3}
        return sorted(self.records(), key=lambda r: (r.state == "failed", -(r.score or 0.0), ranks[r.state], r.number))

    def _seed_sampler(self, number: int) -> None:
        config = self._experiment.sweep
        seed = int(np.random.SeedSequence([config.seed, number]).generate_state(1)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # group: the way to search conditional spaces
            self._study.sampler = (
                optuna.samplers.RandomSampler(seed=seed)
                if config.sampler == "random"
                else optuna.samplers.TPESampler(
                    n_startup_trials=config.startup_trials,
                    multivariate=True,
                    group=True,
                    constant_liar=True,
                    seed=seed,
                )
            )

    def _trials(self) -> list[FrozenTrial]:
        return [t for t in self._study.get_trials(deepcopy=False) if t.state != TrialState.WAITING]

    def _running(self) -> list[FrozenTrial]:
        return [t for t in self._trials() if t.state == TrialState.RUNNING]

    def _frozen(self, number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]

    def _history(self) -> list[Report]:
        return [
            Report(trial.user_attrs[f"report.{epoch}"]["order"], trial.number, self._group(trial), epoch, value)
            for trial in self._trials()
            for epoch, value in trial.intermediate_values.items()
        ]

    def _group(self, trial: FrozenTrial) -> str:
        overrides = trial.user_attrs["overrides"]
        return "|".join(
            str(overrides.get(key, leaf(self._experiment, key))) for key in self._experiment.sweep.pruner.group_by
        )

    def _record(self, trial: FrozenTrial) -> TrialRecord:
        base = {key: leaf(self._experiment, key) for key in ("model.backbone", "model.head")}
        details = [trial.user_attrs[f"report.{epoch}"] for epoch in sorted(trial.intermediate_values)]
        return TrialRecord(
            number=trial.number,
            state=STATES[trial.state],
            overrides=base | trial.user_attrs.get("overrides", {}),
            epochs=max(trial.intermediate_values, default=0),
            score=details[-1]["best"] if details else None,
            seconds=details[-1]["seconds"] if details else 0.0,
            error=trial.user_attrs.get("error"),
            history=dict(trial.intermediate_values),
        )


def leaf(experiment: Experiment, key: str) -> Any:
    """The value under a dotted override key."""
    value: Any = experiment
    for part in key.split("."):
        value = getattr(value, part)
    return value


def drop_torn_line(journal: Path) -> None:
    """Cut a last line that a killed driver did not finish: Optuna would append to it and never read on."""
    if not journal.exists():
        return
    data = journal.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    lines = whole.splitlines(keepends=True)
    if lines and not _is_json(lines[-1]):
        whole = whole[: -len(lines[-1])]
    if whole != data:
        with journal.open("r+b") as file:
            file.truncate(len(whole))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


class _LeaseIsEnough(JournalFileOpenLock):
    """The run folder's lease keeps other drivers out; a lock file would outlive a kill and cost 30 s."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass
