"""Timing for `head` and `train_step`: sides in turn, round after round, so that a machine's drift hits all of them."""

from __future__ import annotations

import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

Run = Callable[[], object]
SHORTEST_S = 0.5
"""The machine counts its work in hundredths of a second: below this length nothing can be said of others."""


@dataclass(frozen=True)
class Measured:
    """What the rounds gave."""

    times: dict[str, list[float]]
    """Side -> seconds of one run, one value a round."""
    others: float | None
    """Share of the machine's processors that other processes used meanwhile; None where that cannot be told."""


def ratio(times: Mapping[str, Sequence[float]], one: str, other: str) -> float:
    """`one`'s time over `other`'s: the median over the rounds, in each of which both met the same machine."""
    return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))


def measure(
    sides: Mapping[str, Run],
    *,
    rounds: int,
    device: torch.device,
    least_s: float = 0.0,
    repeats: int = 1,
    warmup: int = 2,
) -> Measured:
    """Time each side once a round: A B C, B C A, C A B, ... Each time is the mean of `repeats` runs in a row.

    The turn shifts, so that what a side leaves behind (a hot processor, a swept cache) falls on all others alike.
    On a GPU a time ends when the device has finished; `repeats` spreads that wait over several runs. There are at
    least `rounds` rounds, and as many as fit into `least_s` seconds: a neighbour's busy second must not decide.
    """
    for run in sides.values():
        for _ in range(warmup):
            run()
    times: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    machine_before, own_before, started = machine_cpu_s(), time.process_time(), time.perf_counter()
    for number in itertools.count():
        if number >= rounds and time.perf_counter() - started >= least_s:
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(_seconds(sides[name], device, repeats))
    machine_after, own, passed = machine_cpu_s(), time.process_time() - own_before, time.perf_counter() - started
    if machine_before is None or machine_after is None or passed < SHORTEST_S:
        return Measured(times, None)
    share = (machine_after - machine_before - own) / (passed * (os.cpu_count() or 1))
    return Measured(times, min(1.0, max(0.0, share)))


def machine_cpu_s() -> float | None:
    """CPU seconds that the machine has worked since it started; None where there is no /proc/stat."""
    try:
        user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    except FileNotFoundError:
        return None
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _seconds(run: Run, device: torch.device, repeats: int) -> float:
    """Mean wall seconds of `repeats` runs, from an idle device to an idle device."""
    _wait(device)
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    _wait(device)
    return (time.perf_counter() - started) / repeats


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def why_not(run: Run) -> str | None:
    """Run it once; None, or the first line of what it raised (a compiler without a compiler)."""
    try:
        run()
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0][:200]}"
    return None


def machine_line(device: torch.device, packages: Sequence[str] = ("torch", "timm")) -> str:
    """What the numbers depend on besides the code: device, processor, cores, threads, versions, date."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = (names or [platform.processor() or platform.machine()])[0]
    where = f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        where = f"{torch.cuda.get_device_name(device)}; {where}"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    return f"{where}; python {platform.python_version()}, {versions}; {datetime.now(UTC).date().isoformat()}"


def others_line(shares: Sequence[float | None]) -> list[str]:
    """One line, or none where nothing is known."""
    known = [share for share in shares if share is not None]
    return [f"other processes used up to {100 * max(known):.0f} % of the machine meanwhile"] if known else []
