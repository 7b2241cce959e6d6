"""What a sweep leaves when it ends: the leaderboard, the best model, and what to do next."""

from __future__ import annotations

import numpy as np
from rich.console import Console

from orchestrator.config.overrides import override_words
from orchestrator.execution.bundle import write_best
from orchestrator.execution.progress import leaderboard_table, percent, reason
from orchestrator.execution.request import DONE, INTERRUPTED, NO_TRIAL_SUCCEEDED, Request
from orchestrator.execution.runfolder import RunFolder
from orchestrator.search.study import TrialRecord
from trainables.metrics import chance_level


def finish(
    request: Request,
    console: Console,
    folder: RunFolder,
    records: list[TrialRecord],
    val_labels: np.ndarray,
    *,
    interrupted: bool,
) -> int:
    """Write and print the leaderboard and the model; the exit code. `val_labels` (N, K) give the chance level."""
    experiment = request.experiment
    objective = experiment.model.objective
    folder.write_leaderboard(records, objective)
    title = f"leaderboard of {folder.path.name}"
    console.print(leaderboard_table(records, objective, experiment.train.epochs, title))
    chance = percent(chance_level(val_labels) if objective == "mAP" else val_labels.mean(axis=0).max())
    console.print(f"chance level: {chance} % {objective} on {len(val_labels)} images, for scores that know nothing")
    for record in records:
        if record.error:
            console.print(f"trial {record.number} failed: {reason(record.error)}", style="red", soft_wrap=True)
            console.print(f"  {folder.trial(record.number) / 'error.txt'}", soft_wrap=True)
    best = best_of(records)
    if best is not None:
        console.print(f"best: {percent(best.score)} % {objective}, trial {best.number}", style="bold")
        console.print(f"  {' '.join(override_words(best.overrides))}", soft_wrap=True)
        metrics = folder.best_metrics(best.number)
        if "mAP_unseen" in metrics:
            console.print(
                f"  {percent(metrics['mAP_unseen'])} % mAP on the {len(request.source.unseen)} unseen classes, "
                f"{percent(metrics['mAP_seen'])} % on the seen ones; chosen by all classes together",
                soft_wrap=True,
            )
        bundle = write_best(folder, experiment, best, request.source.classes, request.source.unseen)
        console.print(f"model: {bundle or 'its trial left no checkpoint'}", soft_wrap=True)
    console.print(f"run folder: {folder.path}", soft_wrap=True)
    if interrupted:
        console.print(f"interrupted; go on with: {request.again()}", soft_wrap=True)
        return INTERRUPTED
    if request.command == "sweep" and best is not None:
        console.print(f"more trials: {request.again(trials=2 * experiment.sweep.trials)}", soft_wrap=True)
    return NO_TRIAL_SUCCEEDED if best is None else DONE


def best_of(records: list[TrialRecord]) -> TrialRecord | None:
    """The best complete trial of a leaderboard; where none is complete, the best that was scored."""
    scored = [record for record in records if record.state != "failed" and record.score is not None]
    return next((record for record in scored if record.state == "complete"), scored[0] if scored else None)
