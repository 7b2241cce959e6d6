"""The pure half of `head`: what the times mean, whether the targets are met, and how it is told."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.benchmarks.rounds import others_line, ratio

OURS, TIMM, FIXED = "ours", "timm", "timm #2045"
COMPILED, OURS_COMPILED = "timm compiled", "ours compiled"
FORWARD, BOTH, GROUP = "forward", "forward + backward", "group projection"
MODES = (FORWARD, BOTH, GROUP)
NEVER_SLOWER = 1.0
TARGETS = {"cpu": {FORWARD: 1.2, BOTH: 1.2, GROUP: 10.0}, "cuda": {FORWARD: 1.5, BOTH: 1.5, GROUP: 10.0}}


@dataclass(frozen=True)
class Row:
    """One case in one mode."""

    mode: str
    case: str
    times: dict[str, list[float]]
    """Side -> seconds, one value a round."""
    missing: dict[str, str]
    """Side -> why it did not run."""
    others: float | None

    def gain(self, side: str = OURS) -> float:
        """timm's time over that side's."""
        return ratio(self.times, TIMM, side)


@dataclass(frozen=True)
class Verdict:
    """How one mode went over all cases."""

    mode: str
    mean: float
    """Geometric, of timm's time over ours."""
    lowest: float
    target: float

    @property
    def met(self) -> bool:
        return self.mean >= self.target and self.lowest >= NEVER_SLOWER


def verdicts(rows: Sequence[Row], device_type: str) -> list[Verdict]:
    """One for each mode that was measured."""
    found = []
    for mode in MODES:
        if ratios := [row.gain() for row in rows if row.mode == mode]:
            target = TARGETS["cpu" if device_type == "cpu" else "cuda"][mode]
            found.append(Verdict(mode, statistics.geometric_mean(ratios), min(ratios), target))
    return found


def table(rows: Sequence[Row], found: Sequence[Verdict], what: str, machine: str) -> str:
    """What a person reads: medians in milliseconds, with timm's time over the side's in brackets."""
    lines = [what]
    for verdict in found:
        of_mode = [row for row in rows if row.mode == verdict.mode]
        sides = [*of_mode[0].times, *of_mode[0].missing]
        lines += ["", f"{verdict.mode + ', ms':34}" + "".join(f"{side:>20}" for side in sides)]
        lines += [f"{row.case:34}" + "".join(f"{_cell(row, side):>20}" for side in sides) for row in of_mode]
        lines.append(
            f"timm / ours: geometric mean {verdict.mean:.2f} (target: at least {verdict.target:g}), lowest "
            f"{verdict.lowest:.2f} (target: at least {NEVER_SLOWER:g}): {'met' if verdict.met else 'missed'}"
        )
    reasons: Mapping[str, str] = {side: why for row in rows for side, why in row.missing.items()}
    lines += ["", *(f"{side} was not run: {why}" for side, why in reasons.items())]
    return "\n".join([*lines, *others_line([row.others for row in rows]), machine])


def _cell(row: Row, side: str) -> str:
    if side in row.missing:
        return "not run"
    return f"{1000 * statistics.median(row.times[side]):.2f} ({row.gain(side):.2f}x)"
