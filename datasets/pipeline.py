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
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import ray
import ray.data

from datasets import order, shards, transforms
from datasets.feeding import shuffle_window
from datasets.schema import DataError, Manifest

Batch = dict[str, np.ndarray]

TRAIN, VAL = 0, 1


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
    """Height and width at which the model is judged, in pixels."""
    resident: tuple[tuple[Any, ...], tuple[Any, ...]] | None = None
    """Object references of the decoded blocks of train and val, one a row group; None when streaming."""
    crop_share: float | None = None
    """How images become squares, see `transforms.fit`; None squashes them."""
    train_side: int | None = None
    """Images of train are squashed to this side instead."""

    def num_batches(self, batch_size: int) -> int:
        """Global batches in one epoch."""
        return order.num_batches(len(self.train.image_ids), batch_size)

    def train_batches(
        self, epoch: int, *, seed: int, batch_size: int, rank: int = 0, world_size: int = 1, repeats: int = 1
    ) -> Iterator[Batch]:
        """This rank's share of every global batch of an epoch, in the order that (seed, epoch) decides.

        With `repeats` each image stands that often in the epoch, side by side, and the epoch is as long as ever.
        """
        window = shuffle_window(self._shape(TRAIN)[0])
        epoch_rows = order.epoch_order(self.train.group_rows, seed=seed, epoch=epoch, window=window)
        rows = order.batches(order.repeated(epoch_rows, repeats), batch_size, rank=rank, world_size=world_size)
        return self._batches(TRAIN, rows)

    def val_batches(self, batch_size: int, *, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """This rank's share of the validation images: whole row groups, each image in exactly one rank."""
        starts = self.val.starts
        mine = [np.arange(starts[g], starts[g + 1]) for g in range(rank, len(self.val.groups), world_size)]
        rows = np.concatenate(mine) if mine else np.empty(0, np.int64)
        return self._batches(VAL, np.split(rows, range(batch_size, len(rows), batch_size)))

    def _shape(self, which: int) -> tuple[int, float | None]:
        """Side and crop_share of the images of TRAIN or VAL."""
        if which == TRAIN and self.train_side is not None:
            return self.train_side, None
        return self.image_size, self.crop_share

    def _batches(self, which: int, rows: Sequence[np.ndarray]) -> Iterator[Batch]:
        split = (self.train, self.val)[which]
        rows = [batch for batch in rows if len(batch)]
        if self.resident is None:
            images = _stream(split, rows, *self._shape(which))
        else:
            images = _gather(_fetch(self.resident[which]), split.starts, rows)
        for batch, image in zip(rows, images, strict=True):
            yield {"image": image, "labels": split.labels[batch], "image_id": split.image_ids[batch]}


def make_resident(
    train: Split, val: Split, image_size: int, crop_share: float | None = None, train_side: int | None = None
) -> Feed:
    """Decode both splits over the cluster and keep the images in the object store."""
    feed = Feed(train, val, image_size, None, crop_share, train_side)
    return replace(feed, resident=(_blocks(train, *feed._shape(TRAIN)), _blocks(val, *feed._shape(VAL))))


def _blocks(split: Split, side: int, crop_share: float | None) -> tuple[Any, ...]:
    """Object references of all images of a split, decoded, one a row group."""
    items = _items(split, _all_rows(split))
    blocks = _decoded(items, side, crop_share).materialize().to_numpy_refs(column="image")
    if len(blocks) != len(items):
        raise RuntimeError(f"one block a row group was expected, but got {len(blocks)} for {len(items)} row groups")
    return tuple(blocks)


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


def _stream(split: Split, batches: Sequence[np.ndarray], side: int, crop_share: float | None) -> Iterator[np.ndarray]:
    """Decode ahead of the batches; an image waits in the object store until its last batch is due."""
    waiting: dict[int, np.ndarray] = {}
    if not batches:
        return
    all_rows = np.concatenate(batches)
    still_needed = np.bincount(all_rows)
    decoded = _decoded(_items(split, all_rows), side, crop_share)
    arrivals = iter(decoded.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=2))
    for rows in batches:
        while not all(row in waiting for row in rows):
            block = next(arrivals)
            waiting.update(zip(block["row"].tolist(), block["image"], strict=True))
        image = np.stack([waiting[row] for row in rows])
        np.subtract.at(still_needed, rows, 1)
        for row in np.unique(rows[still_needed[rows] == 0]):
            del waiting[row]
        yield image


def _all_rows(split: Split) -> np.ndarray:
    return np.arange(len(split.image_ids))


def _items(split: Split, rows: np.ndarray) -> list[dict[str, Any]]:
    """One item a row group that holds any of `rows`, in the order in which `rows` first needs them."""
    starts = split.starts
    groups, first_use = np.unique(np.searchsorted(starts, rows, side="right") - 1, return_index=True)
    in_file_order = np.unique(rows)
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


def _decoded(items: list[dict[str, Any]], side: int, crop_share: float | None) -> ray.data.Dataset:
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    dataset.context.target_max_block_size = None  # a row group stays one block, however large its images are
    decode = partial(_read_and_decode, side=side, crop_share=crop_share)
    return dataset.map_batches(decode, batch_size=None, batch_format="numpy", num_cpus=1)


def _read_and_decode(item: dict[str, np.ndarray], side: int, crop_share: float | None) -> dict[str, np.ndarray]:
    """One row group: bytes -> uint8 (n, 3, S, S). A failure names the image; shards hold only readable ones."""
    folder, file, rows = str(item["folder"][0]), str(item["file"][0]), np.asarray(item["rows"][0])
    read = shards.read_rows(folder, file, int(item["row_group"][0]), rows, columns=("image_id", "image"))
    image = np.empty((len(rows), 3, side, side), np.uint8)
    for position, (image_id, data) in enumerate(zip(read["image_id"], read["image"], strict=True)):
        try:
            pixels = transforms.decode(data)
        except transforms.BadImageError as error:
            raise DataError(
                f"A shard must hold readable images, but image {image_id} in {folder}/{file} is not ({error}). "
                "The file has changed since its manifest was checked: copy or write it again."
            ) from error
        image[position] = transforms.to_chw(transforms.fit(pixels, side, crop_share=crop_share))
    return {"row": rows + int(item["start"][0]), "image": image}
