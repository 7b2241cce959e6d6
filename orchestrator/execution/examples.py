"""Where the splits of a data set lie, by `data.source`: what is read there, and what identifies it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import coco, imagenet, lists
from datasets.config import DataConfig
from datasets.schema import DataError, Record


@dataclass(frozen=True)
class SplitFiles:
    """One split of a data set in its original files."""

    source: str
    """`coco`, `imagenet` or `lists`."""
    name: str
    image_root: Path
    """The folder that the names of images are relative to."""
    annotations: Path
    """Of `coco`, or the list file; the folder itself where the folders are the labels."""
    label_list: Path
    """Of `lists`."""

    def read(self, *, keep_unlabelled: bool) -> tuple[list[Record], list[str]]:
        """Records and class names; DataError where a file is missing or wrong."""
        if self.source == "imagenet":
            return imagenet.read(self.image_root)
        if self.source == "lists":
            return lists.read(self.annotations, self.label_list, self.image_root, keep_unlabelled=keep_unlabelled)
        return coco.read(self.annotations, self.image_root, keep_unlabelled=keep_unlabelled)

    def identity(self, records: Sequence[Record], classes: Sequence[str], *, keep_unlabelled: bool) -> dict[str, Any]:
        """What decides the content of shards; no location in it, so that it travels."""
        if self.source == "coco":
            return {
                "annotations": coco.source_digest(self.annotations),
                "images": digest([(r.image_id, Path(r.path).name, _size(r.path)) for r in records]),
                "keep_unlabelled": keep_unlabelled,
            }
        start = len(os.path.realpath(self.image_root)) + 1
        return {
            "images": digest([(r.image_id, r.path[start:], r.labels, _size(r.path)) for r in records]),
            "classes": digest(classes),
        }


def locate(config: DataConfig) -> tuple[SplitFiles, SplitFiles]:
    """Train and val of `coco`, `imagenet` or `lists`; DataError where the images of a list are nowhere."""
    folder = needed_root(config)

    def split(name: str, list_file: str) -> SplitFiles:
        image_root, annotations = folder / name, folder / name
        if config.source == "coco":
            annotations = folder / "annotations" / f"instances_{name}.json"
        elif config.source == "lists":
            annotations = folder / list_file
            image_root = lists.image_root(annotations, (folder / name, folder))
        return SplitFiles(config.source, name, image_root, annotations, folder / config.label_list)

    return split(config.train_split, config.train_list), split(config.val_split, config.val_list)


def root(config: DataConfig) -> Path | None:
    """The folder of the data set, absolute; None where it is not set."""
    return None if config.root is None else Path(config.root).expanduser().resolve()


def needed_root(config: DataConfig) -> Path:
    """The folder of the data set; DataError where it is not set."""
    if (found := root(config)) is None:
        raise DataError(
            f"data.root must name the folder of the data set for data.source={config.source}, but it is not set. "
            "Add data.root=FOLDER to the command."
        )
    return found


def digest(value: object) -> str:
    """The first 12 hexadecimal digits of the sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _size(path: str) -> int:
    """In bytes; -1 for a file that is missing, which is found and counted when shards are written."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
