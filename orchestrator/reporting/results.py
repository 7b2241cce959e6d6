"""Reads run folders: which trials were completed, what they reached, and how fast.

Nothing malformed is believed: a file or trial that is not what a driver writes is left out, with the reason.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeGuard

from pydantic import ValidationError

from orchestrator.config.experiment import Experiment
from orchestrator.config.overrides import RequestError, with_overrides
from orchestrator.execution.runfolder import RunFolder


@dataclass(frozen=True)
class TrialResult:
    """A trial that was trained to its end."""

    folder: Path
    """Its run folder."""
    number: int
    experiment: Experiment
    """The tree it was trained with: that of its run, with what was sampled for it."""
    score: float
    """Its best epoch's value of the objective, in [0, 1]."""
    num_evaluated: int
    """Images that it was judged on."""
    images_per_s: float | None
    """Median over its epochs, in training; None where it only was evaluated."""
    date: str
    """Day on which its run was started, YYYY-MM-DD; a later driver may only have printed the leaderboard."""
    data_digest: str
    bundle: Path | None
    """`best/`, where that holds this trial's weights."""


@dataclass(frozen=True)
class LeftOut:
    """A run folder, or a trial of it, that gave no result."""

    folder: Path
    reason: str


@dataclass(frozen=True)
class Results:
    """Everything under one root."""

    root: Path
    trials: tuple[TrialResult, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


class _NotBelievedError(ValueError):
    """A file is not what a driver writes."""


def read(root: Path) -> Results:
    """The completed trials of every run folder under `root`, which need not exist."""
    trials: list[TrialResult] = []
    left_out: list[LeftOut] = []
    for path in sorted(root.glob("*/experiment.json")):
        folder = path.parent
        try:
            run = _Run.read(folder)
            rows = [row for row in _rows(folder) if row["state"] == "complete"]
        except _NotBelievedError as error:
            left_out.append(LeftOut(folder, str(error)))
            continue
        if not rows:
            left_out.append(LeftOut(folder, "no trial is complete"))
        for row in rows:
            try:
                trials.append(run.trial(row))
            except _NotBelievedError as error:
                left_out.append(LeftOut(folder, f"trial {row['number']}: {error}"))
    return Results(root, tuple(trials), tuple(left_out))


@dataclass(frozen=True)
class _Run:
    """What is common to the trials of a run folder."""

    folder: Path
    experiment: Experiment
    date: str
    data_digest: str
    bundle: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> _Run:
        content = _json(folder / "experiment.json")
        try:
            experiment = Experiment.model_validate(content["experiment"])
            date = datetime.fromisoformat(content["drivers"][0]["started"]).date().isoformat()
            digest = content["data_digest"]
        except ValidationError as error:
            keys = ", ".join(".".join(map(str, item["loc"])) or "the tree" for item in error.errors())
            raise _NotBelievedError(f"experiment.json holds no experiment of this version: {keys}") from error
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise _NotBelievedError(f"experiment.json is not what a driver writes: {error!r}") from error
        try:
            bundle = _json(folder / "best" / "bundle.json")
        except _NotBelievedError:
            bundle = {}
        return cls(folder, experiment, date, str(digest), bundle if isinstance(bundle, dict) else {})

    def trial(self, row: dict[str, Any]) -> TrialResult:
        """The result of a complete row of the leaderboard."""
        try:
            experiment = with_overrides(self.experiment, row["overrides"])
        except RequestError as error:
            raise _NotBelievedError(f"its overrides are refused: {'; '.join(error.problems)}") from error
        if row["epochs"] != experiment.train.epochs:
            raise _NotBelievedError(f"complete, but after {row['epochs']} of {experiment.train.epochs} epochs")
        objective = experiment.model.objective
        score = row.get(objective)
        if not (_is_number(score) and 0 <= score <= 1):
            raise _NotBelievedError(f"{objective} must lie in [0, 1], but the leaderboard has {score!r}")
        path = RunFolder(self.folder).trial(row["number"]) / "metrics.jsonl"
        epochs = [line for line in _lines(path) if _is_count(line.get("num_evaluated"))]
        if not epochs:
            raise _NotBelievedError("metrics.jsonl does not say how many images it was judged on")
        rates = [line["images_per_s"] for line in epochs if _is_number(line.get("images_per_s"))]
        weights = self.folder / "best" / "model.safetensors"
        return TrialResult(
            folder=self.folder,
            number=row["number"],
            experiment=experiment,
            score=float(score),
            num_evaluated=min(line["num_evaluated"] for line in epochs),
            images_per_s=statistics.median(rates) if rates else None,
            date=self.date,
            data_digest=self.data_digest,
            bundle=weights.parent if self.bundle.get("trial") == row["number"] and weights.is_file() else None,
        )


def _rows(folder: Path) -> list[dict[str, Any]]:
    rows = _json(folder / "leaderboard.json")
    for row in rows if isinstance(rows, list) else [None]:
        if not (
            isinstance(row, dict)
            and isinstance(row.get("state"), str)
            and _is_count(row.get("number"))
            and _is_count(row.get("epochs"))
            and isinstance(row.get("overrides"), dict)
        ):
            raise _NotBelievedError("leaderboard.json is no list of trials")
    return rows


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _NotBelievedError(f"there is no {path.name}") from error
    except (OSError, ValueError) as error:
        raise _NotBelievedError(f"{path.name} cannot be read: {error}") from error


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file with one a line; a line that a killed driver did not finish is skipped."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def _is_number(value: Any) -> TypeGuard[float]:
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def _is_count(value: Any) -> TypeGuard[int]:
    return _is_integer(value) and value >= 0


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
