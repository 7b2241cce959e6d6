"""The pure half of `sweep_cost`: whether all sides did the same work, what the times mean, and how they are told."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TARGET_PLAIN, TARGET_STOCK = 1.0, 0.2
SAME_MAP = 1e-6
OURS, STOCK = "ours", "stock recipe"


class UnequalWorkError(RuntimeError):
    """A side did not train what it should, so its time says nothing."""


@dataclass(frozen=True)
class Measured:
    """One side in one round."""

    wall_s: float
    """Of the whole sweep; scaled where only some of its trials ran."""
    mAP: dict[str, list[float]]
    """Configuration -> one value an epoch."""
    others: float | None = None
    """Share of the machine that other processes used meanwhile, where that can be told."""


def scaled(wall_s: float, in_trials_s: float, done: int, wanted: int) -> float:
    """Wall seconds of `wanted` trials, from those of `done`: start and end once, the rest in proportion."""
    return wall_s - in_trials_s + in_trials_s * wanted / done


def checked(
    trained: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]], *, epochs: int, val_images: int
) -> dict[str, list[float]]:
    """Configuration -> mAP of each epoch.

    Raises:
        UnequalWorkError: a configuration, an epoch or an image is missing, unknown or counted twice.
    """
    found: dict[str, list[float]] = {}
    for trial in trained:
        name = identity(trial["overrides"])
        if name in found:
            raise UnequalWorkError(f"{name} was trained twice")
        if [int(epoch["epoch"]) for epoch in trial["epochs"]] != list(range(1, epochs + 1)):
            raise UnequalWorkError(f"{name} was not trained for epochs 1 to {epochs}: {trial['epochs']}")
        if any(epoch["num_evaluated"] != val_images for epoch in trial["epochs"]):
            raise UnequalWorkError(f"{name} was not judged on {val_images} images: {trial['epochs']}")
        found[name] = [float(epoch["mAP"]) for epoch in trial["epochs"]]
    if differing := found.keys() ^ {identity(overrides) for overrides in wanted}:
        raise UnequalWorkError(f"wanted and trained differ by {sorted(differing)}")
    return found


def identity(overrides: Mapping[str, Any]) -> str:
    """A configuration as text that does not depend on the order of its keys."""
    return " ".join(f"{key}={overrides[key]}" for key in sorted(overrides))


def largest_difference(some: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]) -> float:
    """Of the mAP of any epoch of any configuration that both have."""
    pairs = (pair for name in some.keys() & other.keys() for pair in zip(some[name], other[name], strict=True))
    return max(abs(one - two) for one, two in pairs)


def plain_name(threads: int) -> str:
    """The plain loop's row; one for each number of threads."""
    return f"plain loop, {threads} thread" + ("s" if threads > 1 else "")


def summary(rounds: Sequence[Mapping[str, Measured]], num_trials: int) -> dict[str, Any]:
    """Medians, ratios and differences over the rounds; the plain loop counts with its best setting."""
    walls = {side: [measured[side].wall_s for measured in rounds] for side in rounds[0]}
    medians = {side: statistics.median(values) for side, values in walls.items()}
    peer = min((side for side in walls if side.startswith("plain")), key=medians.__getitem__)
    ratios = {
        side: {
            "median": medians[OURS] / medians[side],
            "rounds": [ours / theirs for ours, theirs in zip(walls[OURS], walls[side], strict=True)],
            "target": target,
        }
        for side, target in ((peer, TARGET_PLAIN), (STOCK, TARGET_STOCK))
    }
    differences = {
        side: max(largest_difference(measured[OURS].mAP, measured[side].mAP) for measured in rounds)
        for side in walls
        if side != OURS
    }
    others = [one.others for measured in rounds for one in measured.values() if one.others is not None]
    return {
        "num_trials": num_trials,
        "walls_s": walls,
        "peer": peer,
        "ratios": ratios,
        "largest_difference_of_mAP": differences,
        "others": max(others, default=None),
    }


def table(
    found: Mapping[str, Any], threads: Mapping[str, str], workload: str, machine: Mapping[str, Any], stock_trials: int
) -> str:
    """What a person reads; plain text, as it goes into the README."""
    num_trials = found["num_trials"]
    lines = [
        f"a sweep of {num_trials} trials, nothing pruned: {workload}",
        f"{'side':32} {'threads':>14} {'wall s: median (min - max)':>28} {'s per trial':>12}",
    ]
    for side, walls in found["walls_s"].items():
        median = statistics.median(walls)
        name = f"{side} ({stock_trials} of them, scaled)" if side == STOCK and stock_trials < num_trials else side
        spread = f"{median:.1f} ({min(walls):.1f} - {max(walls):.1f})"
        lines.append(f"{name:32} {threads[side]:>14} {spread:>28} {median / num_trials:12.2f}")
    for side, ratio in found["ratios"].items():
        verdict = "met" if ratio["median"] <= ratio["target"] else "missed"
        lines.append(
            f"ours / {side}: {ratio['median']:.2f} (rounds {min(ratio['rounds']):.2f} - {max(ratio['rounds']):.2f}); "
            f"the target is at most {ratio['target']:g}: {verdict}"
        )
    for side, difference in found["largest_difference_of_mAP"].items():
        why = "batches are drawn otherwise" if side == STOCK else "rounding differs"
        note = "equal" if difference <= SAME_MAP else why
        lines.append(f"largest difference of an epoch's mAP, ours and {side}: {difference:.1e} ({note})")
    if found["others"] is not None:
        lines.append(f"other processes used up to {100 * found['others']:.0f} % of the machine meanwhile")
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines.append(f"{machine['cpu']}, {machine['cores']} cores; {versions}; {machine['date']}")
    return "\n".join(lines)
