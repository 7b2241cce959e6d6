"""From shards to the batches of one worker, through Ray Data.

Two ways to feed, same batches in the same order:

* *resident*: every image is decoded once, before the first trial, into blocks of the object store; all trials
  of a sweep read them there without a copy.
* *streaming*: each worker reads and decodes the row groups that its next batches need. Row groups are the items
  of the data set and are read and decoded in one task, so an epoch lists no files and its order is ours.

A batch is `{"image": uint8 (B, 3, H, W), "labels": uint8 (B, K), "image_id": int64 (B,)}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import ray
import ray.data

from datasets import order, shards, transforms
from datasets.feeding import shuffle_window
from datasets.schema import DataError, Manifest

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Split:
    """One split of a shard set: where its row groups lie, and the labels of all its images in that order."""

    folder: str
    groups: tuple[tuple[str, int, int], ...]
    """(shard file, row group, rows) each."""
    image_ids: np.ndarray
    labels: np.ndarray

    @property
    def group_rows(self) -> list[int]:
        return [rows for _, _, rows in self.groups]

    @property
    def starts(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.group_rows)])


def open_split(folder: str, manifest: Manifest) -> Split:
    """Index a shard set whose manifest has been checked (`shards.read_manifest`)."""
    image_ids, labels = shards.index(manifest, folder)
    groups = tuple(
        (shard.file, group, rows)
        for shard in manifest.shards
        for group, rows in enumerate(shards.group_rows(folder, shard.file))
    )
    return Split(str(folder), groups, image_ids, labels)


@dataclass(frozen=True)
class Feed:
    """Both splits of a data set as one worker sees them; cheap to send to any process of the cluster."""

    train: Split
    val: Split
    image_size: int
    resident: tuple[tuple[Any, ...], tuple[Any, ...]] | None = None
    """Object references of the decoded blocks of train and val, one a row group; None when streaming."""

    def num_batches(self, batch_size: int) -> int:
        """Global batches in one epoch."""
        return order.num_batches(len(self.train.image_ids), batch_size)

    def train_batches(
        self, epoch: int, *, seed: int, batch_size: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        """This rank's share of every global batch of an epoch, in the order that (seed, epoch) decides."""
        window = shuffle_window(self.image_size)
        epoch_rows = order.epoch_order(self.train.group_rows, seed=seed, epoch=epoch, window=window)
        rows = order.batches(epoch_rows, batch_size, rank=rank, world_size=world_size)
        return self._batches(self.train, 0, rows)

    def val_batches(self, batch_size: int, *, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """This rank's share of the validation images: whole row groups, each image in exactly one rank."""
        starts = self.val.starts
        mine = [np.arange(starts[g], starts[g + 1]) for g in range(rank, len(self.val.groups), world_size)]
        rows = np.concatenate(mine) if mine else np.empty(0, np.int64)
        return self._batches(self.val, 1, np.split(rows, range(batch_size, len(rows), batch_size)))

    def _batches(self, split: Split, which: int, rows: Sequence[np.ndarray]) -> Iterator[Batch]:
        rows = [batch for batch in rows if len(batch)]
        if self.resident is None:
            images = _stream(split, rows, self.image_size)
        else:
            images = _gather(_fetch(self.resident[which]), split.starts, rows)
        for batch, image in zip(rows, images, strict=True):
            yield {"image": image, "labels": split.labels[batch], "image_id": split.image_ids[batch]}


def make_resident(train: Split, val: Split, image_size: int) -> Feed:
    """Decode both splits over the cluster and keep the images in the object store."""
    items = _items(train, _all_rows(train)) + _items(val, _all_rows(val))
    decoded = _decoded(items, image_size).materialize()
    blocks = decoded.to_numpy_refs(column="image")
    if len(blocks) != len(items):
        raise RuntimeError(f"one block a row group was expected, but got {len(blocks)} for {len(items)} row groups")
    return Feed(train, val, image_size, (tuple(blocks[: len(train.groups)]), tuple(blocks[len(train.groups) :])))


@lru_cache(maxsize=2)  # train and val: a trial process that is reused fetches once
def _fetch(references: tuple[Any, ...]) -> list[np.ndarray]:
    """Read-only views of the object store; no copy on the node that holds the blocks."""
    return ray.get(list(references))


def _gather(blocks: list[np.ndarray], starts: np.ndarray, batches: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    for rows in batches:
        group = np.searchsorted(starts, rows, side="right") - 1
        image = np.empty((len(rows), *blocks[0].shape[1:]), np.uint8)
        for position, (block, row) in enumerate(zip(group, rows - starts[group], strict=True)):
            image[position] = blocks[block][row]
        yield image


def _stream(split: Split, batches: Sequence[np.ndarray], image_size: int) -> Iterator[np.ndarray]:
    """Decode ahead of the batches; an image waits in the object store until its batch is due."""
    waiting: dict[int, np.ndarray] = {}
    if not batches:
        return
    decoded = _decoded(_items(split, np.concatenate(batches)), image_size)
    arrivals = iter(decoded.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2))
    for rows in batches:
        while not all(row in waiting for row in rows):
            block = next(arrivals)
            waiting.update(zip(block["row"].tolist(), block["image"], strict=True))
        yield np.stack([waiting.pop(row) for row in rows])


def _all_rows(split: Split) -> np.ndarray:
    return np.arange(len(split.image_ids))


def _items(split: Split, rows: np.ndarray) -> list[dict[str, Any]]:
    """One item a row group that holds any of `rows`, in the order in which `rows` first needs them."""
    starts = split.starts
    groups, first_use = np.unique(np.searchsorted(starts, rows, side="right") - 1, return_index=True)
    in_file_order = np.sort(rows)
    edges = np.searchsorted(in_file_order, starts)
    return [
        {
            "folder": split.folder,
            "file": split.groups[g][0],
            "row_group": split.groups[g][1],
            "start": int(starts[g]),
            "rows": (in_file_order[edges[g] : edges[g + 1]] - starts[g]).tolist(),
        }
        for g in groups[np.argsort(first_use)]
    ]


def _decoded(items: list[dict[str, Any]], image_size: int) -> ray.data.Dataset:
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    dataset.context.target_max_block_size = None  # a row group stays one block, however large its images are
    return dataset.map_batches(
        partial(_read_and_decode, image_size=image_size), batch_size=None, batch_format="numpy", num_cpus=1
    )


def _read_and_decode(item: dict[str, np.ndarray], image_size: int) -> dict[str, np.ndarray]:
    """One row group: bytes -> uint8 (n, 3, S, S). A failure names the image; shards hold only readable ones."""
    folder, file, rows = str(item["folder"][0]), str(item["file"][0]), np.asarray(item["rows"][0])
    read = shards.read_rows(folder, file, int(item["row_group"][0]), rows, columns=("image_id", "image"))
    image = np.empty((len(rows), 3, image_size, image_size), np.uint8)
    for position, (image_id, data) in enumerate(zip(read["image_id"], read["image"], strict=True)):
        try:
            pixels = transforms.decode(data)
        except transforms.BadImageError as error:
            raise DataError(
                f"A shard must hold readable images, but image {image_id} in {folder}/{file} is not ({error}). "
                "The file has changed since its manifest was checked: copy or write it again."
            ) from error
        image[position] = transforms.to_chw(transforms.resize(pixels, image_size))
    return {"row": rows + int(item["start"][0]), "image": image}
