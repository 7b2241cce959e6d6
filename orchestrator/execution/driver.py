"""Runs a checked request from shards to leaderboard; the driver's whole life, in order."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console

from cluster import runtime
from datasets import pipeline
from datasets.feeding import crop_share
from datasets.files import sha256
from orchestrator.config.experiment import signature
from orchestrator.config.overrides import RequestError
from orchestrator.execution import dataset
from orchestrator.execution.lease import Lease, LeaseHeldError
from orchestrator.execution.outcome import finish
from orchestrator.execution.placement import connect_and_plan, refuse_early
from orchestrator.execution.plan import DRIVER_CPUS
from orchestrator.execution.problems import label_problems
from orchestrator.execution.progress import Board, make_console
from orchestrator.execution.quiet import noise_to
from orchestrator.execution.request import Request
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
from trainables import checkpoint_files

SECOND_SIGNAL_AFTER_S = 2.0
OF_TRAINING = ("epoch", "loss", "lr", "num_evaluated", "best_epoch", "images_per_s", "seconds")
OF_THE_MODEL = ("mAP", "mAP_seen", "mAP_unseen", "top1", "top5", "best_mAP", "best_top1")
"""Of a result; the rest is Tune's own."""


def drive(request: Request, console: Console) -> int:
    """Train what the request asks for and print what came of it; the exit code.

    Raises:
        RequestError: the plan does not fit, the data is bad, or another driver holds the run folder.
    """
    refuse_early(request)
    prepared = dataset.prepare(request.experiment.data, request.source, request.root / "data")
    splits = _splits(prepared)
    data = request.experiment.data
    names = data.train_split, data.val_split
    wrong = label_problems(request.experiment, {n: split.labels for n, split in zip(names, splits, strict=True)})
    if wrong:
        raise RequestError(*wrong)
    folder = RunFolder(_path(request, prepared))
    folder.path.mkdir(parents=True, exist_ok=True)
    with _held(folder) as lease, noise_to(folder.log) as shown:
        console = make_console(shown)
        folder.remove_leftovers()
        for change in folder.write_experiment(
            request.experiment, data_digest=prepared.digest, classes=request.source.classes
        ):
            console.print(f"since the last driver of this run folder: {change}", soft_wrap=True)
        folder.write_bad_images(prepared.bad_images)
        if prepared.bad_images:
            console.print(f"skipped {len(prepared.bad_images)} unreadable images, listed in {folder.bad_images}")
        study = SweepStudy(folder.journal, request.experiment, request.space, request.experiment.sweep.trials)
        interrupted = _search(request, console, folder, study, prepared, splits, lease)
        if not interrupted:
            folder.remove_scratch()
        return finish(request, console, folder, study.leaderboard(), splits[1].labels, interrupted=interrupted)


def _search(
    request: Request,
    console: Console,
    folder: RunFolder,
    study: SweepStudy,
    prepared: dataset.Prepared,
    splits: tuple[pipeline.Split, pipeline.Split],
    lease: Lease,
) -> bool:
    """Run the trials that are missing; whether it was interrupted. A finished sweep does not even start Ray."""
    experiment = request.experiment
    ended = [record for record in study.records() if record.state != "running"]
    if ended or study.resumed:
        console.print(
            f"going on in {folder.path}: {len(ended)} trials have ended, "
            f"{len(study.resumed)} go on from their last checkpoint",
            soft_wrap=True,
        )
    remaining = max(experiment.sweep.trials - len(ended), len(study.resumed))
    if remaining <= 0:
        return False
    placement = connect_and_plan(request, console)
    plan = placement.plan
    data = experiment.data
    crop, train_side = crop_share(data), data.train_side
    feed = pipeline.Feed(*splits, data.image_size, crop_share=crop, train_side=train_side)
    if placement.feeding == "resident" and experiment.train.epochs > 0:  # one pass over val alone does not pay for it
        feed = pipeline.make_resident(*splits, data.image_size, crop_share=crop, train_side=train_side)
    environment = runtime.environment(experiment.cluster.worker_start_timeout_s)
    with Board(
        console, experiment.model.objective, experiment.train.epochs, experiment.sweep.trials, plan.max_concurrent
    ) as board:
        board.add(ended)
        desk = Desk(study, plan.max_concurrent, board.start, on_report(board, folder), on_end(board, folder, study))
        lease.on_lost = desk.lose
        if lease.lost:  # while the data was decoded
            desk.lose()
        with _interrupts(desk):
            words = prepared.words.vectors if prepared.words else None
            context = TrialContext(experiment, plan, feed, str(folder.path), words, prepared.unseen, environment)
            _fit(context, desk, remaining)
    if desk.broken is not None:
        raise RuntimeError(f"the sweep in {folder.path} was stopped: {desk.broken}") from desk.broken
    return desk.stop_requested


def _splits(prepared: dataset.Prepared) -> tuple[pipeline.Split, pipeline.Split]:
    train, val = (
        pipeline.open_split(str(folder), manifest)
        for folder, manifest in zip(prepared.folders, prepared.manifests, strict=True)
    )
    return train, val


def _path(request: Request, prepared: dataset.Prepared) -> Path:
    """The run folder: the newest of this identity, or with --new the next one."""
    experiment = request.experiment
    weights = experiment.model.weights
    identity = signature(
        experiment,
        data_digest=prepared.digest,
        space_digest=request.space.digest,
        weights_digest=sha256(Path(weights)) if weights else None,
    )
    first = request.root / f"{experiment.name}-{identity}"
    number = 1
    while _numbered(first, number + 1).exists():
        number += 1
    return _numbered(first, number + 1 if request.new and first.exists() else number)


def _numbered(first: Path, number: int) -> Path:
    return first if number == 1 else first.with_name(f"{first.name}-{number}")


@contextlib.contextmanager
def _held(folder: RunFolder) -> Iterator[Lease]:
    """Hold the run folder's lease; another holder makes it a wrong request."""
    lease = Lease(folder.path)
    try:
        lease.acquire()
    except LeaseHeldError as error:
        raise RequestError(str(error)) from error
    try:
        yield lease
    finally:
        lease.release()


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


def on_report(board: Board, folder: RunFolder) -> Callable[[int, dict[str, Any]], None]:
    """Writes a trial's metrics and shows them."""

    def act(number: int, result: dict[str, Any]) -> None:
        metrics = {key: result[key] for key in (*OF_TRAINING, *OF_THE_MODEL) if key in result}
        folder.append_metrics(number, metrics)
        board.report(number, metrics)

    return act


def on_end(board: Board, folder: RunFolder, study: SweepStudy) -> Callable[[TrialRecord], None]:
    """Writes a trial's error and the leaderboard, and shows how it ended."""

    def act(record: TrialRecord) -> None:
        if record.error:
            folder.write_error(record.number, record.error)
        if record.state != "running":
            checkpoint_files.keep_newest(folder.checkpoints(record.number), 1)
        folder.write_leaderboard(study.leaderboard(), study.objective)
        board.end(record)

    return act


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
