"""What a sweep costs, beside a plain loop and beside the stock recipe, on the same tiny trials.

    python -m tests.benchmarks.sweep_cost [--rounds 3] [--trials 24] [--stock-trials 4] [--json FILE]

* ours: `python -m orchestrator.sweep` in a fresh run folder.
* plain: one process, Optuna and PyTorch, the decoded images in arrays (`plain_loop`); with all cores and with
  one thread, of which the faster one is the peer.
* stock: Tuner + OptunaSearch + one-worker TorchTrainer + TuneReportCallback (`stock_recipe`); the first few of
  the trials, the time in trials scaled to all of them, its start and end counted once.

All train the same configurations for the same epochs on the same images; nothing is pruned. Shards are written
before the clock starts, for all three; each decodes them once, and its time is that of the whole process,
imports included. Everything runs on the CPU. Only ours writes checkpoints, a journal and metrics.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 1800.0
EPOCHS = 5
DIGITS = {"train_images": 1000, "val_images": 256, "side": 48, "seed": 0}
BACKBONES, HEADS, QUERY_NUMS = ("lcnet_050", "test_resnet"), ("ml_decoder", "gap"), (10, 5, 2)
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


def configurations(num_trials: int) -> list[dict[str, Any]]:
    """The trials: backbones and heads in turn, the rate rising from 1e-3 to 1e-2, the decoder's size in turn."""
    kinds = list(itertools.product(BACKBONES, HEADS))
    num_rates = -(-num_trials // len(kinds))
    found = []
    for number in range(num_rates):
        lr = round(1e-3 * 10 ** (number / max(1, num_rates - 1)), 6)
        for backbone, head in kinds:
            size = {"model.query_num": QUERY_NUMS[number % len(QUERY_NUMS)]} if head == "ml_decoder" else {}
            found.append({"model.head": head, "model.backbone": backbone, "optim.lr": lr, **size})
    return found[:num_trials]


def write_workload(folder: Path, num_trials: int) -> Path:
    """Shards, a space whose points are all the trials, and the experiment's file, which is returned."""
    from datasets import coco, digits, shards

    scenes = digits.compose(folder / "scenes", **DIGITS)
    for split in ("train", "val"):
        records, classes = coco.read(scenes / "annotations" / f"instances_{split}.json", scenes / split)
        shards.write(records, classes, folder / "shards" / split, split=split)
    space = {
        "parameters": {
            "model.head": {"choice": list(HEADS)},
            "model.backbone": {"choice": list(BACKBONES)},
            "optim.lr": {"float": [1e-4, 1e-1], "log": True},
            "model.query_num": {"query_nums": "all", "when": {"model.head": "ml_decoder"}},
        },
        "points": configurations(num_trials),
    }
    experiment = {
        "name": "sweep_cost",
        "data": {
            "source": "shards",
            "root": str(folder / "shards"),
            "train_split": "train",
            "val_split": "val",
            "image_size": DIGITS["side"],
        },
        "model": {"feature_stride": 16, "embed_dim": 128, "num_heads": 4, "feedforward_dim": 256},
        "optim": {"weight_decay": 1e-2},
        "train": {"epochs": EPOCHS, "batch_size": 64, "ema_decay": 0.99},
        "sweep": {"space": str(folder / "space.yaml"), "trials": num_trials, "pruner": {"name": "none"}},
        "cluster": {"use_gpu": False},
        "output": {"root": str(folder / "runs")},
    }
    (folder / "space.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    return folder / "experiment.yaml"


def run(module: str, words: Sequence[str], log: Path) -> float:
    """Wall seconds of `python -m module words` from start to exit; raises RuntimeError when it fails."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment |= {"CUDA_VISIBLE_DEVICES": ""}
    environment.setdefault("RAY_AUTH_MODE", "disabled")
    with log.open("wb") as output:
        started = time.monotonic()
        code = subprocess.run(
            [sys.executable, "-m", module, *words],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT_S,
        ).returncode
        seconds = time.monotonic() - started
    if code:
        raise RuntimeError(f"{module} ended with exit code {code}:\n{log.read_text(errors='replace')[-4000:]}")
    return seconds


def measure_ours(experiment: Path, num_trials: int) -> Measured:
    """A sweep in a fresh run folder, and what its records say."""
    runs = experiment.parent / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    seconds = run("orchestrator.sweep", [str(experiment)], experiment.parent / "ours.log")
    [folder] = runs.glob("sweep_cost-*")
    trained = []
    for row in json.loads((folder / "leaderboard.json").read_text()):
        if row["state"] != "complete":
            raise UnequalWorkError(f"trial {row['number']} of ours is {row['state']}, not complete")
        lines = (folder / "trials" / f"{row['number']:04d}" / "metrics.jsonl").read_text().splitlines()
        trained.append({"overrides": row["overrides"], "epochs": [json.loads(line) for line in lines]})
    return Measured(seconds, checked(trained, configurations(num_trials)))


def measure_plain(experiment: Path, num_trials: int, threads: int) -> Measured:
    """The plain loop, fresh."""
    result = experiment.parent / "plain.json"
    words = [str(experiment), str(result), "--threads", str(threads)]
    seconds = run("tests.benchmarks.plain_loop", words, experiment.parent / "plain.log")
    return Measured(seconds, checked(json.loads(result.read_text())["trained"], configurations(num_trials)))


def measure_stock(experiment: Path, num_trials: int, stock_trials: int) -> Measured:
    """The stock recipe on the first `stock_trials`, scaled to `num_trials`."""
    result = experiment.parent / "stock.json"
    shutil.rmtree(experiment.parent / "stock_results", ignore_errors=True)
    words = [str(experiment), str(result), "--trials", str(stock_trials)]
    seconds = run("tests.benchmarks.stock_recipe", words, experiment.parent / "stock.log")
    found = json.loads(result.read_text())
    wall = scaled(seconds, found["seconds_in_trials"], stock_trials, num_trials)
    return Measured(wall, checked(found["trained"], configurations(num_trials)[:stock_trials]))


def scaled(wall_s: float, in_trials_s: float, done: int, wanted: int) -> float:
    """Wall seconds of `wanted` trials, from those of `done`: start and end once, the rest in proportion."""
    return wall_s - in_trials_s + in_trials_s * wanted / done


def checked(trained: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Configuration -> mAP of each epoch.

    Raises:
        UnequalWorkError: a configuration is missing, unknown or trained twice, or an epoch or image is.
    """
    found: dict[str, list[float]] = {}
    for trial in trained:
        name = identity(trial["overrides"])
        if name in found:
            raise UnequalWorkError(f"{name} was trained twice")
        if [int(epoch["epoch"]) for epoch in trial["epochs"]] != list(range(1, EPOCHS + 1)):
            raise UnequalWorkError(f"{name} was not trained for epochs 1 to {EPOCHS}: {trial['epochs']}")
        if any(epoch["num_evaluated"] != DIGITS["val_images"] for epoch in trial["epochs"]):
            raise UnequalWorkError(f"{name} was not judged on {DIGITS['val_images']} images: {trial['epochs']}")
        found[name] = [float(epoch["mAP"]) for epoch in trial["epochs"]]
    if differing := found.keys() ^ {identity(overrides) for overrides in wanted}:
        raise UnequalWorkError(f"these were not trained by both: {sorted(differing)}")
    return found


def identity(overrides: Mapping[str, Any]) -> str:
    """A configuration as text that does not depend on the order of its keys."""
    return " ".join(f"{key}={overrides[key]}" for key in sorted(overrides))


def largest_difference(some: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]) -> float:
    """Of the mAP of any epoch of any configuration that both have."""
    pairs = ((name, epoch) for name in some.keys() & other.keys() for epoch in range(EPOCHS))
    return max(abs(some[name][epoch] - other[name][epoch]) for name, epoch in pairs)


def machine() -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    versions = {name: metadata.version(name) for name in ("ray", "torch", "timm", "optuna", "numpy")}
    return {
        "cpu": (names or [platform.processor() or platform.machine()])[0],
        "cores": os.cpu_count() or 1,
        "versions": {"python": platform.python_version(), **versions},
        "date": datetime.now(UTC).date().isoformat(),
    }


def plain_name(threads: int) -> str:
    return f"plain loop, {threads} thread" + ("s" if threads > 1 else "")


def summary(rounds: Sequence[Mapping[str, Measured]], num_trials: int) -> dict[str, Any]:
    """Medians, ratios and differences over the rounds; the plain loop counts with its best setting."""
    walls = {side: [measured[side].wall_s for measured in rounds] for side in rounds[0]}
    medians = {side: statistics.median(values) for side, values in walls.items()}
    peer = min((side for side in walls if side.startswith("plain")), key=medians.__getitem__)
    differences = {
        side: max(largest_difference(measured[OURS].mAP, measured[side].mAP) for measured in rounds)
        for side in walls
        if side != OURS
    }
    return {
        "trials": num_trials,
        "walls_s": walls,
        "peer": peer,
        "ours_over_plain": medians[OURS] / medians[peer],
        "ours_over_stock": medians[OURS] / medians[STOCK],
        "per_round": {side: [a / b for a, b in zip(walls[OURS], walls[side], strict=True)] for side in (peer, STOCK)},
        "largest_difference_of_mAP": differences,
    }


def table(found: Mapping[str, Any], on: Mapping[str, Any], stock_trials: int) -> str:
    """What a person reads; plain text, as it goes into the README."""
    trials, threads = found["trials"], {OURS: f"{min(on['cores'], found['trials'])} trials x 1", STOCK: "1 trial x 1"}
    lines = [
        f"a sweep of {trials} trials: {DIGITS['train_images']} train and {DIGITS['val_images']} val digit scenes of "
        f"{DIGITS['side']} px, {EPOCHS} epochs, nothing pruned",
        f"{'side':28} {'threads':>12} {'wall s: median (min - max)':>28} {'s per trial':>12}",
    ]
    for side, walls in found["walls_s"].items():
        median = statistics.median(walls)
        name = f"{side}, {stock_trials} trials scaled" if side == STOCK else side
        spread = f"{median:.1f} ({min(walls):.1f} - {max(walls):.1f})"
        shown = threads.get(side) or f"1 trial x {side.split()[2]}"
        lines.append(f"{name:28} {shown:>12} {spread:>28} {median / trials:12.2f}")
    for side, key, target in (
        (found["peer"], "ours_over_plain", TARGET_PLAIN),
        (STOCK, "ours_over_stock", TARGET_STOCK),
    ):
        ratios = found["per_round"][side]
        verdict = "met" if found[key] <= target else "missed"
        lines.append(
            f"ours / {side}: {found[key]:.2f} (rounds {min(ratios):.2f} - {max(ratios):.2f}); "
            f"at most {target:g} is the target: {verdict}"
        )
    for side, difference in found["largest_difference_of_mAP"].items():
        note = "equal" if difference <= SAME_MAP else "its batches differ" if side == STOCK else "rounding differs"
        lines.append(f"largest difference of an mAP, ours and {side}: {difference:.1e} ({note})")
    versions = ", ".join(f"{name} {version}" for name, version in on["versions"].items())
    lines.append(f"{on['cpu']}, {on['cores']} cores; {versions}; {on['date']}; {len(found['walls_s'][OURS])} rounds")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.sweep_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--stock-trials", type=int, default=4)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="work here and leave logs and run folders behind")
    arguments = parser.parse_args(argv)
    if not 1 <= arguments.stock_trials <= arguments.trials or arguments.rounds < 1:
        parser.error("rounds >= 1 and 1 <= stock-trials <= trials must hold")
    on, rounds = machine(), []
    settings = sorted({1, on["cores"]}, reverse=True)
    with tempfile.TemporaryDirectory(prefix="sweep_cost_") as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        experiment = write_workload(folder.resolve(), arguments.trials)
        for number in range(arguments.rounds):
            measured = {OURS: measure_ours(experiment, arguments.trials)}
            for threads in settings:
                measured[plain_name(threads)] = measure_plain(experiment, arguments.trials, threads)
            measured[STOCK] = measure_stock(experiment, arguments.trials, arguments.stock_trials)
            rounds.append(measured)
            walls = "; ".join(f"{side} {one.wall_s:.1f} s" for side, one in measured.items())
            print(f"round {number + 1} of {arguments.rounds}: {walls}", flush=True)
    found = summary(rounds, arguments.trials)
    print(table(found, on, arguments.stock_trials))
    if arguments.json:
        each = [{side: asdict(one) for side, one in measured.items()} for measured in rounds]
        arguments.json.write_text(json.dumps({"machine": on, "summary": found, "rounds": each}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
