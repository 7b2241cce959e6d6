"""Timing for `head` and `train_step`: sides in turn, round after round, so that a machine's drift hits all of them."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

Run = Callable[[], object]
Times = dict[str, list[float]]
"""Side -> seconds of one run, one value a round."""


def measure(sides: Mapping[str, Run], *, rounds: int, device: torch.device, repeats: int = 1, warmup: int = 2) -> Times:
    """Time each side once a round: A B C, B C A, C A B, ... Each time is the mean of `repeats` runs in a row.

    What a side leaves behind (a warm cache, a throttled clock) so falls on every other side alike. On a GPU a time
    ends when the device has finished, launches included; there `repeats` hides the wait at the end.
    """
    for run in sides.values():
        for _ in range(warmup):
            run()
    times: Times = {name: [] for name in sides}
    names = list(sides)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(seconds(sides[name], device, repeats))
    return times


def seconds(run: Run, device: torch.device, repeats: int) -> float:
    """Mean wall seconds of `repeats` runs, from an idle device to an idle device."""
    _wait(device)
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    _wait(device)
    return (time.perf_counter() - started) / repeats


def medians(times: Times) -> dict[str, float]:
    """Side -> seconds."""
    return {name: statistics.median(values) for name, values in times.items()}


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def machine_line(device: torch.device, packages: Sequence[str] = ("torch", "timm")) -> str:
    """What the numbers depend on besides the code: processor, cores, threads, device, versions, date."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = (names or [platform.processor() or platform.machine()])[0]
    where = f"{cpu}, {len(names) or '?'} cores, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        where = f"{torch.cuda.get_device_name(device)}; host {where}"
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    return f"{where}; python {platform.python_version()}, {versions}; {datetime.now(UTC).date().isoformat()}"
