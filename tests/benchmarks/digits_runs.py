"""Full sweeps of the digits experiment over given points, for the comparisons that need several seeds."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.sweep_cost import run

Point = dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """One trial that ran its full length: what was sampled, and the metrics of each epoch."""

    point: Point
    epochs: tuple[Mapping[str, float], ...]

    @property
    def last(self) -> Mapping[str, float]:
        return self.epochs[-1]


def sweep(points: Sequence[Point], words: Iterable[str]) -> list[Trained]:
    """Train every point by `python -m orchestrator.sweep digits`, none pruned, in a run folder of its own."""
    with tempfile.TemporaryDirectory(prefix="digits_") as temporary:
        folder = Path(temporary)
        values = {key: sorted({point[key] for point in points}, key=str) for key in points[0]}
        parameters = {key: {"choice": found} for key, found in values.items()}
        space = {"parameters": parameters, "points": list(points)}
        (folder / "space.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
        fixed = [f"sweep.space={folder / 'space.yaml'}", f"sweep.trials={len(points)}", "sweep.pruner.name=none"]
        where = [f"output.root={folder / 'runs'}", "cluster.use_gpu=false"]
        run("orchestrator.sweep", ["digits", *fixed, *where, *words], folder / "log")
        [leaderboard] = (folder / "runs").glob("*/leaderboard.json")
        return [_trained(leaderboard.parent, row, points) for row in json.loads(leaderboard.read_text())]


def _trained(folder: Path, row: Mapping[str, Any], points: Sequence[Point]) -> Trained:
    if row["state"] != "complete":
        raise RuntimeError(f"every trial must run its full length, but trial {row['number']} is {row['state']}")
    lines = (folder / "trials" / f"{row['number']:04d}" / "metrics.jsonl").read_text().splitlines()
    epochs = {line["epoch"]: line for line in map(json.loads, lines)}
    return Trained(dict(points[row["number"]]), tuple(epochs[e] for e in sorted(epochs)))


def mean_and_spread(values: Sequence[float]) -> str:
    """`84.1 ± 0.7` in percent: mean and standard deviation."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.fmean(values):.1f} ± {100 * spread:.1f}"
