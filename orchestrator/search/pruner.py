"""Whether a trial goes on: asynchronous successive halving (arXiv 1810.05934, the stopping variant), as a
pure function of what is recorded.

Optuna's own pruner writes its rung before its verdict, so a process killed in between reopens to another
decision. Here the verdict on a report depends on the reports recorded up to it and on nothing else: it can
be computed again at any time, with the same result.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.config.experiment import PrunerConfig


@dataclass(frozen=True)
class Report:
    """One recorded value. `order` counts the reports of the whole study."""

    order: int
    number: int
    group: str
    epoch: int
    value: float


def rungs(config: PrunerConfig, epochs: int) -> list[int]:
    """Epochs at which trials are judged: grace, grace * reduction, ... below the last epoch."""
    if config.name == "none":
        return []
    marks, mark = [], config.grace
    while mark < epochs:
        marks.append(mark)
        mark *= config.reduction
    return marks


def should_prune(config: PrunerConfig, epochs: int, history: Iterable[Report], judged: Report) -> bool:
    """Whether the trial that made the report `judged` should stop there.

    It goes on when its value is among the best 1/reduction (at least one) of all values that its group had
    recorded at this rung by then. So the best trial of each group always reaches its full length.
    """
    if judged.epoch not in rungs(config, epochs):
        return False
    values = [
        report.value
        for report in history
        if report.group == judged.group and report.epoch == judged.epoch and report.order <= judged.order
    ]
    better = sum(value > judged.value for value in values)
    return better >= max(1, len(values) // config.reduction)
