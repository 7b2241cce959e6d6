"""Reading a folder of class folders, as ImageNet is unpacked: the folder of an image is its only class."""

from __future__ import annotations

import os
from pathlib import Path

from datasets.schema import DataError, Record, listed


def read(folder: str | Path) -> tuple[list[Record], list[str]]:
    """Which image is of which class.

    Every file of a class folder counts as an image, whatever its suffix, but hidden ones; one that is none is
    found, and counted, when shards are written. Links are followed: a subset of ImageNet is often a folder of
    them. Nothing but the names is read, so that 1.28 million files take seconds.

    Args:
        folder: one split, with a folder a class in it; other files beside them are passed over.

    Returns:
        Records sorted by class and file name, numbered in this order from 0; and the names of the class folders,
        sorted, the order that labels index.

    Raises:
        DataError: it is no folder, holds no class folder or no image, or a class folder holds a folder.
    """
    root = os.path.realpath(folder)
    classes, _ = _listing(root)
    records: list[Record] = []
    nested: list[str] = []
    for label, name in enumerate(classes):
        inside, images = _listing(os.path.join(root, name))
        nested += [f"{name}/{below}" for below in inside]
        labels = (label,)  # shared: a tuple for each of a million images would be a third of their memory
        records += [
            Record(number, f"{root}/{name}/{image}", labels) for number, image in enumerate(images, len(records))
        ]
    if nested:
        raise DataError(
            f"class folders must hold images only, but in {folder} there are folders in them:{listed(nested)}\n"
            "Move the images up, or name the folder above the classes."
        )
    if not records:
        raise DataError(
            f"{folder} must hold a folder of images for each class, but it holds {len(classes)} folders and no image "
            "in them. Sort the images into class folders (ImageNet's validation archive comes without), or correct "
            "the path."
        )
    return records, classes


def _listing(folder: str) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in a folder, each sorted, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            visible = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(
            f"{folder} must be a folder that can be read, but it is not ({error.strerror}). Correct the path."
        ) from error
    visible.sort()
    return [name for name, is_dir in visible if is_dir], [name for name, is_dir in visible if not is_dir]
