"""Zero-shot on digits: two of the ten are held out, and judged through their words alone.

    python -m tests.benchmarks.zero_shot_digits [--epochs 16] [--seeds 0 1]

Five folds hold out each digit once. Training never sees a scene with a held-out digit; validation asks for all ten.
The words describe the shape of a digit (`datasets/digit_words.txt`). Beside the chance level (the share of scenes
that show the digit) stands a control: the same training with the words dealt to the wrong digits. What the right
words reach above the wrong ones is what they carry over to unseen classes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from datasets.digits import CLASSES
from tests.benchmarks.digits_runs import Point, Trained, mean_and_spread, sweep
from tests.benchmarks.sweep_cost import machine

FOLDS = (("zero", "one"), ("two", "three"), ("four", "five"), ("six", "seven"), ("eight", "nine"))
QUERIES: dict[str, Point] = {
    "the seen words": {"words.noise": 0.0, "words.num_mixed": 0, "words.num_random": 0},
    "with noise": {"words.noise": 0.5, "words.num_mixed": 0, "words.num_random": 0},
    "and mixed": {"words.noise": 0.0, "words.num_mixed": 8, "words.num_random": 0},
    "and random": {"words.noise": 0.0, "words.num_mixed": 0, "words.num_random": 8},
    "all three": {"words.noise": 0.5, "words.num_mixed": 8, "words.num_random": 8},
}
WORDS = Path(__file__).parents[2] / "datasets" / "digit_words.txt"


def write_wrong_words(path: Path, seed: int = 0) -> None:
    """The same vectors, none of them at its own digit."""
    lines = [line.partition(" ") for line in WORDS.read_text().splitlines()]
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(lines))
    while (order == np.arange(len(lines))).any():
        order = generator.permutation(len(lines))
    text = "".join(f"{name} {lines[other][2]}\n" for (name, _, _), other in zip(lines, order, strict=True))
    path.write_text(text)


def sweep_fold(unseen: Sequence[str], words: str, seeds: Sequence[int], epochs: int) -> list[Trained]:
    """All kinds of queries and seeds on one fold."""
    points = [kind | {"train.seed": seed} for kind in QUERIES.values() for seed in seeds]
    fixed = ["model.head=word_decoder", f"data.word_vectors={words}", f"data.unseen_list={','.join(unseen)}"]
    return sweep(points, [*fixed, f"train.epochs={epochs}", "optim.lr=3.5e-3"])


def as_table(found: Mapping[str, Mapping[str, Sequence[Trained]]], chance: float) -> Table:
    """`found`: words (right, wrong) -> fold -> trials."""
    title = f"digits, two of ten unseen, mean over folds and seeds; chance on the unseen {100 * chance:.1f} %"
    table = Table(title=title, title_justify="left")
    for name in ("queries in training", "words", "unseen mAP %", "seen mAP %", "generalised mAP %"):
        table.add_column(name, justify="left" if name == "words" else "right")
    for kind, settings in QUERIES.items():
        for words, folds in found.items():
            trials = [t for fold in folds.values() for t in fold if settings.items() <= t.point.items()]
            cells = [mean_and_spread([t.last[name] for t in trials]) for name in ("mAP_unseen", "mAP_seen", "mAP")]
            table.add_row(kind, words, *cells)
    return table


def folds_table(found: Mapping[str, Mapping[str, Sequence[Trained]]], chances: Mapping[str, float]) -> Table:
    table = Table(title="unseen mAP %, mean over all kinds of queries", title_justify="left")
    for name in ("unseen digits", "chance", *found):
        table.add_column(name, justify="right")
    for fold, chance in chances.items():
        means = [statistics.fmean(t.last["mAP_unseen"] for t in folds[fold]) for folds in found.values()]
        table.add_row(fold, f"{100 * chance:.1f}", *(f"{100 * mean:.1f}" for mean in means))
    return table


def chance_levels() -> dict[str, float]:
    """Share of the validation scenes that show a digit, mean over each fold's two."""
    from datasets import coco, digits

    with tempfile.TemporaryDirectory() as temporary:
        root = digits.compose(Path(temporary) / "d", train_images=1, val_images=500, side=48, seed=0)
        records, _ = coco.read(root / "annotations" / "instances_val.json", root / "val")
    shown = np.array([[k in record.labels for k in range(len(CLASSES))] for record in records]).mean(axis=0)
    return {", ".join(fold): float(np.mean([shown[CLASSES.index(name)] for name in fold])) for fold in FOLDS}


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.zero_shot_digits", description=__doc__)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments = parser.parse_args(argv)
    console, chances = Console(width=110), chance_levels()
    found: dict[str, dict[str, list[Trained]]] = {"right": {}, "wrong": {}}
    with tempfile.TemporaryDirectory() as temporary:
        wrong = Path(temporary) / "wrong.txt"
        write_wrong_words(wrong)
        for words, file in (("right", "digits"), ("wrong", str(wrong))):
            for fold in FOLDS:
                found[words][", ".join(fold)] = sweep_fold(fold, file, arguments.seeds, arguments.epochs)
    console.print(as_table(found, statistics.fmean(chances.values())))
    console.print(folds_table(found, chances))
    console.print(machine())


if __name__ == "__main__":
    main(sys.argv[1:])
