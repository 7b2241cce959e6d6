"""ML-Decoder against pooling on digits: the same number of rates, seeds and epochs for each.

    python -m tests.benchmarks.heads_on_digits [--epochs 8 24 ...] [--seeds 0 1 2]

Each head has three learning rates around its best at eight epochs; every rate is trained with every seed, which
decides the start, the order of the images and the noise. A head's rate is chosen by its mean over the seeds, and
its result is the last epoch's mAP at that rate: mean and standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from tests.benchmarks.digits_runs import Point, Trained, mean_and_spread, sweep
from tests.benchmarks.sweep_cost import machine

RATES = {"gap": (2e-2, 4e-2, 8e-2), "ml_decoder": (1.8e-3, 3.5e-3, 7e-3)}


@dataclass(frozen=True)
class Result:
    """One head at one length."""

    head: str
    epochs: int
    lr: float
    mAPs: tuple[float, ...]
    """One a seed."""
    seconds: float
    """Mean of one trial."""


def points(seeds: Sequence[int]) -> list[Point]:
    """Head x rate x seed."""
    return [
        {"model.head": head, "optim.lr": lr, "train.seed": seed}
        for head, rates in RATES.items()
        for lr in rates
        for seed in seeds
    ]


def results(trained: Sequence[Trained], epochs: int) -> list[Result]:
    """The best rate of each head."""
    found = []
    for head, rates in RATES.items():
        of_head = [trial for trial in trained if trial.point["model.head"] == head]
        at = {lr: [trial for trial in of_head if trial.point["optim.lr"] == lr] for lr in rates}
        lr = max(rates, key=lambda rate: statistics.fmean(trial.last["mAP"] for trial in at[rate]))
        scores = tuple(trial.last["mAP"] for trial in sorted(at[lr], key=lambda t: t.point["train.seed"]))
        found.append(Result(head, epochs, lr, scores, statistics.fmean(t.last["seconds"] for t in of_head)))
    return found


def as_table(found: Sequence[Result]) -> Table:
    table = Table(title="digits, test_resnet, 2,000 scenes; mAP % of the last epoch", title_justify="left")
    for name in ("epochs", "head", "best lr", "mAP %", "each seed", "s per trial"):
        table.add_column(name, justify="right")
    for one in found:
        each = ", ".join(f"{100 * value:.1f}" for value in one.mAPs)
        table.add_row(str(one.epochs), one.head, f"{one.lr:g}", mean_and_spread(one.mAPs), each, f"{one.seconds:.0f}")
    return table


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.heads_on_digits", description=__doc__)
    parser.add_argument("--epochs", type=int, nargs="+", default=[8])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args(argv)
    console = Console(width=110)
    for epochs in arguments.epochs:
        trained = sweep(points(arguments.seeds), [f"train.epochs={epochs}"])
        console.print(as_table(results(trained, epochs)))
    console.print(machine())


if __name__ == "__main__":
    main(sys.argv[1:])
