"""Runs a checked request from shards to leaderboard; the driver's whole life, in order."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

from ray import tune
from rich.console import Console

from cluster import runtime
from datasets import pipeline
from orchestrator.config.experiment import signature
from orchestrator.config.overrides import RequestError, override_words
from orchestrator.execution import dataset
from orchestrator.execution.bundle import write_best
from orchestrator.execution.lease import Lease, LeaseHeldError
from orchestrator.execution.placement import connect_and_plan
from orchestrator.execution.plan import DRIVER_CPUS, Plan
from orchestrator.execution.progress import Board, leaderboard_table, make_console, percent
from orchestrator.execution.quiet import noise_to
from orchestrator.execution.request import DONE, INTERRUPTED, NO_TRIAL_SUCCEEDED, Request
from orchestrator.execution.runfolder import RunFolder
from orchestrator.execution.trial import TrialContext, run_trial
from orchestrator.search.study import SweepStudy, TrialRecord
from orchestrator.search.tune import (
    Desk,
    StopWhenAsked,
    StudyCallback,
    StudyScheduler,
    StudySearcher,
    open_desk,
)
from trainables.metrics import chance_level

SECOND_SIGNAL_AFTER_S = 2.0


def drive(request: Request, console: Console) -> int:
    """Train what the request asks for and print what came of it; the exit code.

    Raises:
        RequestError: the plan does not fit, the data is bad, or another driver holds the run folder.
    """
    plan, feeding = connect_and_plan(request, console)
    prepared = dataset.prepare(request.experiment.data, request.source, request.root / "data")
    folder = _run_folder(request, prepared)
    folder.path.mkdir(parents=True, exist_ok=True)
    with _held(folder):
        folder.write_experiment(request.experiment, data_digest=prepared.digest, classes=request.source.classes)
        bad = [image for manifest in prepared.manifests for image in manifest.bad_images]
        folder.write_bad_images(bad)
        if bad:
            console.print(f"skipped {len(bad)} unreadable images, listed in {folder.path / 'bad_images.jsonl'}")
        with noise_to(folder.log) as shown:
            console = make_console(shown)
            return _sweep(request, console, folder, plan, _feed(request, prepared, feeding))


def _feed(request: Request, prepared: dataset.Prepared, feeding: str) -> pipeline.Feed:
    train, val = (
        pipeline.open_split(str(folder), manifest)
        for folder, manifest in zip(prepared.folders, prepared.manifests, strict=True)
    )
    size = request.experiment.data.image_size
    return pipeline.make_resident(train, val, size) if feeding == "resident" else pipeline.Feed(train, val, size)


def _run_folder(request: Request, prepared: dataset.Prepared) -> RunFolder:
    experiment = request.experiment
    identity = signature(experiment, data_digest=prepared.digest, space_digest=request.space.digest)
    path = request.root / f"{experiment.name}-{identity}"
    if request.new:
        earlier = len(list(request.root.glob(f"{path.name}*")))
        path = path.with_name(f"{path.name}-{earlier + 1}") if earlier else path
    return RunFolder(path)


@contextlib.contextmanager
def _held(folder: RunFolder) -> Iterator[None]:
    """Hold the run folder's lease; another holder makes it a wrong request."""
    lease = Lease(folder.path)
    try:
        lease.acquire()
    except LeaseHeldError as error:
        raise RequestError(str(error)) from error
    try:
        yield
    finally:
        lease.release()


def _sweep(request: Request, console: Console, folder: RunFolder, plan: Plan, feed: pipeline.Feed) -> int:
    experiment = request.experiment
    study = SweepStudy(folder.journal, experiment, request.space, experiment.sweep.trials)
    before = study.records()
    ended = [record for record in before if record.state != "running"]
    if before:
        console.print(
            f"going on in {folder.path}: {len(ended)} trials have ended, "
            f"{len(study.resumed)} go on from their last checkpoint",
            soft_wrap=True,
        )
    remaining = max(0, experiment.sweep.trials - len(ended))
    with Board(console, experiment.train.epochs, experiment.sweep.trials, plan.max_concurrent) as board:
        board.add(ended)
        desk = Desk(study, plan.max_concurrent, board.start, _on_report(board, folder), _on_end(board, folder, study))
        if remaining:
            with _interrupts(desk):
                environment = runtime.environment(experiment.cluster.worker_start_timeout_s)
                _fit(TrialContext(experiment, plan, feed, str(folder.path), environment), desk, remaining)
    if desk.broken is not None:
        raise RuntimeError(f"the study in {folder.journal} could not be read or written") from desk.broken
    return _finish(request, console, folder, study, feed, interrupted=desk.stop_requested)


def _fit(context: TrialContext, desk: Desk, num_trials: int) -> None:
    plan, name = context.plan, context.run_folder
    open_desk(name, desk)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(plan.max_concurrent)
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # ours lets a sweep be resumed
    resources: dict[str, float] = {"cpu": DRIVER_CPUS}
    if plan.workers == 0:
        resources = {"cpu": plan.cpus_per_worker, "gpu": plan.gpus_per_worker}
    tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, context=context), resources),
        tune_config=tune.TuneConfig(
            search_alg=StudySearcher(name),
            scheduler=StudyScheduler(name),
            num_samples=num_trials,
            reuse_actors=plan.workers == 0,
            trial_dirname_creator=lambda trial: f"{trial.config['number']:04d}-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=context.run_folder,
            callbacks=[StudyCallback(name)],
            stop=StopWhenAsked(name),
            verbose=0,
        ),
    ).fit()


def _on_report(board: Board, folder: RunFolder) -> Any:
    def on_report(number: int, result: dict[str, Any]) -> None:
        metrics = {key: result[key] for key in METRICS if key in result}
        folder.append_metrics(number, metrics)
        board.report(number, metrics)

    return on_report


METRICS = (*("epoch", "loss", "lr", "mAP", "num_evaluated", "best_mAP", "best_epoch", "images_per_s", "seconds"),)
"""Of a result; the rest is Tune's own."""


def _on_end(board: Board, folder: RunFolder, study: SweepStudy) -> Any:
    def on_end(record: TrialRecord) -> None:
        if record.error:
            folder.write_error(record.number, record.error)
        folder.write_leaderboard(study.leaderboard())
        board.end(record)

    return on_end


def _finish(
    request: Request, console: Console, folder: RunFolder, study: SweepStudy, feed: pipeline.Feed, *, interrupted: bool
) -> int:
    experiment, records = request.experiment, study.leaderboard()
    folder.write_leaderboard(records)
    console.print(leaderboard_table(records, experiment.train.epochs, f"leaderboard of {folder.path.name}"))
    chance = chance_level(feed.val.labels)
    console.print(
        f"chance level: {percent(chance)} % mAP on {len(feed.val.image_ids)} images, for scores that know nothing"
    )
    scored = [record for record in records if record.state != "failed" and record.mAP is not None]
    best = next((record for record in scored if record.state == "complete"), scored[0] if scored else None)
    if best is not None:
        console.print(f"best: {percent(best.mAP)} % mAP, trial {best.number}", style="bold")
        console.print(f"  {' '.join(override_words(best.overrides))}", soft_wrap=True)
        bundle = write_best(folder, experiment, best, request.source.classes)
        console.print(f"model: {bundle or 'no checkpoint of it was written'}", soft_wrap=True)
    console.print(f"run folder: {folder.path}", soft_wrap=True)
    if interrupted:
        console.print(f"interrupted; go on with: {request.again()}", soft_wrap=True)
        return INTERRUPTED
    folder.remove_scratch()
    if request.command == "sweep":
        console.print(f"more trials: {request.again(trials=2 * experiment.sweep.trials)}", soft_wrap=True)
    return NO_TRIAL_SUCCEEDED if best is None else DONE


@contextlib.contextmanager
def _interrupts(desk: Desk) -> Iterator[None]:
    """The first SIGINT or SIGTERM ends the sweep at the next event, resumable; a later one at once.

    Some senders signal a process and then its whole group, so two signals at a time count as one.
    """
    first: list[float] = []

    def ask(number: int, frame: Any) -> None:
        first.append(time.monotonic())
        desk.stop_requested = True
        if first[-1] - first[0] > SECOND_SIGNAL_AFTER_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
