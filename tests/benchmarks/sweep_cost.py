"""What a sweep costs, beside a plain loop and beside the stock recipe, on the same tiny trials.

    python -m tests.benchmarks.sweep_cost [--rounds 3] [--trials 24] [--stock-trials 4] [--json FILE]

* ours: `python -m orchestrator.sweep` in a fresh run folder, as many trials at a time as there are cores.
* plain: one process, Optuna and PyTorch, the decoded images in arrays (`plain_loop`); once with a thread for
  each core and once with one thread, of which the faster is the peer.
* stock: Tuner + OptunaSearch + one-worker TorchTrainer + TuneReportCallback (`stock_recipe`); the first few of
  the trials, the time in trials scaled to all of them, start and end counted once.

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
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from datasets import coco, digits, shards
from tests.benchmarks.cost_table import OURS, STOCK, Measured, UnequalWorkError, checked, plain_name, scaled
from tests.benchmarks.cost_table import summary as summarize
from tests.benchmarks.cost_table import table as as_table

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 1800.0
CORES = os.cpu_count() or 1
EPOCHS, TRAIN_IMAGES, VAL_IMAGES, SIDE = 5, 768, 256, 48
BACKBONES, HEADS, QUERY_NUMS = ("lcnet_050", "test_resnet"), ("ml_decoder", "gap"), (10, 5, 2)
WORKLOAD = f"{TRAIN_IMAGES} train and {VAL_IMAGES} val digit scenes of {SIDE} px, {EPOCHS} epochs"


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


def write_space(path: Path, num_trials: int) -> None:
    """A space whose points are all the trials, each with every value given."""
    space = {
        "parameters": {
            "model.head": {"choice": list(HEADS)},
            "model.backbone": {"choice": list(BACKBONES)},
            "optim.lr": {"float": [1e-4, 1e-1], "log": True},
            "model.query_num": {"query_nums": "all", "when": {"model.head": "ml_decoder"}},
        },
        "points": configurations(num_trials),
    }
    path.write_text(yaml.safe_dump(space, sort_keys=False))


def write_workload(folder: Path, num_trials: int) -> Path:
    """Shards, the space, and the experiment's file, which is returned."""
    scenes = digits.compose(folder / "scenes", train_images=TRAIN_IMAGES, val_images=VAL_IMAGES, side=SIDE, seed=0)
    for split in ("train", "val"):
        records, classes = coco.read(scenes / "annotations" / f"instances_{split}.json", scenes / split)
        shards.write(records, classes, folder / "shards" / split, split=split, source={"scenes": SIDE})
    write_space(folder / "space.yaml", num_trials)
    shards_of = {"root": str(folder / "shards"), "train_split": "train", "val_split": "val"}
    sweep = {"trials": num_trials, "max_concurrent": min(CORES, num_trials), "pruner": {"name": "none"}}
    experiment = {
        "name": "sweep_cost",
        "data": {"source": "shards", **shards_of, "image_size": SIDE},
        "model": {"feature_stride": 16, "embed_dim": 128, "num_heads": 4, "feedforward_dim": 256},
        "optim": {"weight_decay": 1e-2},
        "train": {"epochs": EPOCHS, "batch_size": 64, "ema_decay": 0.99},
        "sweep": {"space": str(folder / "space.yaml"), **sweep},
        "cluster": {"use_gpu": False, "cpus_per_worker": 1},
        "output": {"root": str(folder / "runs")},
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    return folder / "experiment.yaml"


def run(module: str, words: Sequence[str], log: Path) -> tuple[float, float | None]:
    """`python -m module words` from start to exit.

    Returns:
        Wall seconds, and the share of the machine that was busy with anything but this process (and but its
        children, as far as it waited for them); None where that cannot be told.

    Raises:
        RuntimeError: it failed; the message ends with its output.
    """
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    environment.setdefault("RAY_AUTH_MODE", "disabled")
    command = [sys.executable, "-m", module, *words]
    with log.open("wb") as output:
        machine_before, own_before, started = machine_cpu_s(), children_cpu_s(), time.monotonic()
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, timeout=TIMEOUT_S
        )
        seconds, machine_after = time.monotonic() - started, machine_cpu_s()
    if done.returncode:
        tail = log.read_text(errors="replace")[-4000:]
        raise RuntimeError(f"{module} ended with exit code {done.returncode}:\n{tail}")
    if machine_before is None or machine_after is None:
        return seconds, None
    busy = machine_after - machine_before - (children_cpu_s() - own_before)
    return seconds, max(0.0, busy / (seconds * CORES))


def machine_cpu_s() -> float | None:
    """CPU seconds that the machine has worked since it started; None where there is no /proc/stat."""
    try:
        user, nice, system, _, _, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    except FileNotFoundError:
        return None
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def children_cpu_s() -> float:
    """CPU seconds of the child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def judged(trained: Sequence[Mapping[str, Any]], num_trials: int) -> dict[str, list[float]]:
    """The mAP of the first `num_trials` configurations, if those and no others were trained in full."""
    return checked(trained, configurations(num_trials), epochs=EPOCHS, val_images=VAL_IMAGES)


def measure_ours(experiment: Path, num_trials: int) -> Measured:
    """A sweep in a fresh run folder, and what its records say."""
    runs = experiment.parent / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    seconds, _ = run("orchestrator.sweep", [str(experiment)], experiment.parent / "ours.log")
    [folder] = runs.glob("sweep_cost-*")
    trained = []
    for row in json.loads((folder / "leaderboard.json").read_text()):
        if row["state"] != "complete":
            raise UnequalWorkError(f"trial {row['number']} of ours is {row['state']}, not complete")
        lines = (folder / "trials" / f"{row['number']:04d}" / "metrics.jsonl").read_text().splitlines()
        trained.append({"overrides": row["overrides"], "epochs": [json.loads(line) for line in lines]})
    return Measured(seconds, judged(trained, num_trials))


def measure_plain(experiment: Path, num_trials: int, threads: int) -> Measured:
    """The plain loop, fresh."""
    result = experiment.parent / "plain.json"
    words = [str(experiment), str(result), "--threads", str(threads)]
    seconds, others = run("tests.benchmarks.plain_loop", words, experiment.parent / "plain.log")
    return Measured(seconds, judged(json.loads(result.read_text())["trained"], num_trials), others)


def measure_stock(experiment: Path, num_trials: int, stock_trials: int) -> Measured:
    """The stock recipe on the first `stock_trials`, scaled to `num_trials`."""
    result = experiment.parent / "stock.json"
    shutil.rmtree(experiment.parent / "stock_results", ignore_errors=True)
    words = [str(experiment), str(result), "--trials", str(stock_trials)]
    seconds, _ = run("tests.benchmarks.stock_recipe", words, experiment.parent / "stock.log")
    found = json.loads(result.read_text())
    wall = scaled(seconds, found["seconds_in_trials"], stock_trials, num_trials)
    return Measured(wall, judged(found["trained"], stock_trials))


def machine() -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    versions = {name: metadata.version(name) for name in ("ray", "torch", "timm", "optuna", "numpy")}
    return {
        "cpu": (names or [platform.processor() or platform.machine()])[0],
        "cores": CORES,
        "versions": {"python": platform.python_version(), **versions},
        "date": datetime.now(UTC).date().isoformat(),
    }


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
    threads = {OURS: f"{min(CORES, arguments.trials)} trials x 1"}
    threads |= {plain_name(n): f"1 trial x {n}" for n in sorted({1, CORES}, reverse=True)} | {STOCK: "1 trial x 1"}
    rounds = []
    with tempfile.TemporaryDirectory(prefix="sweep_cost_") as temporary:
        folder = (arguments.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        experiment = write_workload(folder, arguments.trials)
        for number in range(arguments.rounds):
            measured = {OURS: measure_ours(experiment, arguments.trials)}
            for n in sorted({1, CORES}, reverse=True):
                measured[plain_name(n)] = measure_plain(experiment, arguments.trials, n)
            measured[STOCK] = measure_stock(experiment, arguments.trials, arguments.stock_trials)
            rounds.append(measured)
            walls = "; ".join(f"{side} {one.wall_s:.1f} s" for side, one in measured.items())
            print(f"round {number + 1} of {arguments.rounds}: {walls}", flush=True)
    found, on = summarize(rounds, arguments.trials), machine()
    print(as_table(found, threads, WORKLOAD, on, arguments.stock_trials))
    if arguments.json:
        each = [{side: asdict(one) for side, one in measured.items()} for measured in rounds]
        content = {"machine": on, "workload": WORKLOAD, "threads": threads, "summary": found, "rounds": each}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
