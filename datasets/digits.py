"""A small multi-label data set without a download: scenes of handwritten digits, in COCO's layout.

The digits are the 1,797 scans of 8 x 8 pixels that come with scikit-learn. A scene holds 0 to 4 of them, in
varying size, place, brightness and colour on a noisy ground. Train and val draw from disjoint scans.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets import files
from datasets.schema import DataError

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MAX_DIGITS = 4
"""Digits in a scene: 0 .. MAX_DIGITS, all counts equally likely."""
MIN_SIDE = 16

_VERSION = 1  # raised when the same arguments give other scenes
_TRAIN_SHARE = 0.8
_MAX_OVERLAP = 0.1  # of the smaller of two digits' squares
_STREAMS = {"scans": 0, "train": 1, "val": 2}  # independent random streams of one seed

_Entry = dict[str, Any]  # of the lists in an annotation file


@dataclass(frozen=True)
class Scans:
    """Handwritten digits to compose from."""

    numbers: np.ndarray
    """(N,) position of each scan in scikit-learn's set."""
    pixels: np.ndarray
    """(N, 8, 8) uint8, stroke = 255."""
    digits: np.ndarray
    """(N,) 0 .. 9."""


def compose(root: str | Path, *, train_images: int, val_images: int, side: int, seed: int) -> Path:
    """Write `annotations/instances_{train,val}.json`, `train/*.jpg` and `val/*.jpg`, or take what lies there.

    The same arguments give the same bytes. Two processes may compose the same root at once.

    Args:
        root: folder to be made; a finished one of the same arguments is left as it is.
        train_images, val_images: scenes in each split.
        side: height and width of a scene in pixels.
        seed: decides the split of the scans and every scene.

    Returns:
        `root`.

    Raises:
        DataError: `root` holds something else, or `side` is too small to show a digit.
    """
    if side < MIN_SIDE:
        raise DataError(f"A scene must have a side of at least {MIN_SIDE} pixels, but side={side}. Raise it.")
    root = Path(root)
    wanted = {
        "version": _VERSION,
        "train_images": train_images,
        "val_images": val_images,
        "side": side,
        "seed": seed,
    }
    if files.is_free(root):
        with files.new_folder(root) as folder:
            splits = split_scans(seed)
            for split, num_images in (("train", train_images), ("val", val_images)):
                _write_split(folder, split, num_images, splits[split], side, seed)
            (folder / "digits.json").write_text(json.dumps(wanted))
    found = _arguments(root)
    if found != wanted:
        raise DataError(
            f"{root} must hold digit scenes made with {wanted}, but it holds {found or 'something else'}. "
            "Name another folder, or remove this one."
        )
    return root


def split_scans(seed: int) -> dict[str, Scans]:
    """Disjoint scans for `train` (four fifths of each digit) and `val` (the rest), at random."""
    from sklearn.datasets import (
        load_digits,
    )  # takes a second to import, and the class names are needed without it

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    generator = np.random.default_rng([seed, _STREAMS["scans"]])
    chosen: dict[str, list[np.ndarray]] = {"train": [], "val": []}
    for digit in range(len(CLASSES)):
        shuffled = generator.permutation(np.flatnonzero(bunch.target == digit))
        for_train, for_val = np.split(shuffled, [round(_TRAIN_SHARE * len(shuffled))])
        chosen["train"].append(for_train)
        chosen["val"].append(for_val)
    return {
        split: Scans(numbers, pixels[numbers], bunch.target[numbers])
        for split, numbers in ((split, np.concatenate(parts)) for split, parts in chosen.items())
    }


def _arguments(root: Path) -> object:
    """What a finished folder was made with, or None; `digits.json` is there only in a finished one."""
    try:
        return json.loads((root / "digits.json").read_text())
    except (OSError, ValueError):
        return None


def _write_split(root: Path, split: str, num_images: int, scans: Scans, side: int, seed: int) -> None:
    (root / split).mkdir()
    images: list[_Entry] = []
    annotations: list[_Entry] = []
    for image_id in range(1, num_images + 1):
        generator = np.random.default_rng([seed, _STREAMS[split], image_id])
        pixels, placed = _scene(generator, scans, side)
        name = f"{image_id:06d}.jpg"
        Image.fromarray(pixels).save(root / split / name, "JPEG", quality=90)
        images.append({"id": image_id, "file_name": name, "width": side, "height": side})
        for annotation in placed:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **annotation})
    tree = {
        "info": {"description": "Scenes of handwritten digits", "version": str(_VERSION)},
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name, "supercategory": "digit"} for number, name in enumerate(CLASSES, 1)
        ],
    }
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(tree))


def _scene(generator: np.random.Generator, scans: Scans, side: int) -> tuple[np.ndarray, list[_Entry]]:
    """(side, side, 3) uint8, and an annotation for each digit, still without ids."""
    pixels = _ground(generator, side)
    placed = []
    for left, top, size in _layout(generator, int(generator.integers(MAX_DIGITS + 1)), side):
        chosen = int(generator.integers(len(scans.numbers)))
        glyph = Image.fromarray(scans.pixels[chosen]).resize((size, size), Image.Resampling.BILINEAR)
        stroke = np.asarray(glyph, np.float32)[..., None] / 255
        color = generator.uniform(160, 255) * generator.uniform(0.8, 1.0, 3)
        window = pixels[top : top + size, left : left + size]
        window += stroke * (color.astype(np.float32) - window)
        x, y, width, height = _tight_box(stroke[..., 0])
        placed.append(
            {
                "category_id": int(scans.digits[chosen]) + 1,
                "bbox": [left + x, top + y, width, height],
                "area": width * height,
                "iscrowd": 0,
                "scan": int(scans.numbers[chosen]),
            }
        )
    pixels += 8 * generator.standard_normal(pixels.shape, np.float32)
    return np.clip(pixels, 0, 255).astype(np.uint8), placed


def _ground(generator: np.random.Generator, side: int) -> np.ndarray:
    """(side, side, 3) float32: one dim colour with slow changes, interpolated from a grid of 3 x 3 values."""
    grid = generator.uniform(20, 100) + generator.uniform(-25, 25, (3, 3, 3))
    position = np.linspace(0, 2, side)
    weights = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(3)))  # (side, 3), rows sum to 1
    return np.einsum("yi,ijc,xj->yxc", weights, grid, weights, optimize=True).astype(np.float32)


def _layout(generator: np.random.Generator, count: int, side: int) -> Iterator[tuple[int, int, int]]:
    """(left, top, size) of `count` squares that hardly overlap; whole layouts are drawn until one fits."""
    while True:
        size = generator.integers(round(side * 10 / 48), round(side * 24 / 48), (64, count), endpoint=True)
        start = generator.integers(0, side - size[..., None], (64, count, 2), endpoint=True)
        end = start + size[..., None]
        shared = np.minimum(end[:, :, None], end[:, None]) - np.maximum(start[:, :, None], start[:, None])
        overlap = np.prod(np.maximum(shared, 0), -1) / np.minimum(size[:, :, None], size[:, None]) ** 2
        overlap[:, np.arange(count), np.arange(count)] = 0  # a square with itself
        fits = np.flatnonzero((overlap <= _MAX_OVERLAP).all((1, 2)))
        if len(fits):
            first = fits[0]
            return ((int(x), int(y), int(s)) for (x, y), s in zip(start[first], size[first], strict=True))


def _tight_box(stroke: np.ndarray) -> tuple[int, int, int, int]:
    """x, y, width, height of the pixels of (S, S) that are clearly part of the stroke."""
    inked = stroke > 0.25
    rows, columns = np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0))
    return (
        int(columns[0]),
        int(rows[0]),
        int(columns[-1] - columns[0] + 1),
        int(rows[-1] - rows[0] + 1),
    )
