"""Shards: a split of a data set as Parquet files of encoded images, with a manifest that is written last.

A shard holds rows in groups of one size, the unit of reading. Images stay as they were in their files; each
has been decoded once before it was written, so a reader meets only readable ones. Ids and labels come first
and are read alone where that is enough. Reading is in `shard_reader`; its functions are also found here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets import files, transforms
from datasets.schema import FORMAT, BadImage, DataError, Manifest, Record, Shard
from datasets.shard_reader import MANIFEST, group_rows, index, multi_hot, read_manifest, read_rows

__all__ = ["SCHEMA", "group_rows", "index", "multi_hot", "read_manifest", "read_rows", "write"]

SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("labels", pa.list_(pa.int16())),  # class indices
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("image", pa.binary()),
    ]
)
_COMPRESSION = {
    "image_id": "zstd",
    "labels.list.element": "zstd",
    "width": "zstd",
    "height": "zstd",
    "image": "none",
}


def write(
    records: Sequence[Record],
    classes: Sequence[str],
    folder: str | Path,
    *,
    split: str,
    image_size: int | None = None,
    rows_per_group: int = 128,
    rows_per_shard: int = 1024,
    source: Mapping[str, Any] | None = None,
    max_bad_share: float = 0.01,
    image_root: str | Path | None = None,
) -> Manifest:
    """Write a split as shards; `folder` appears when it is complete, and not at all after an error.

    Rows keep the order of `records`. Unreadable and missing images are left out and listed in the manifest.
    The encoded images of one row group are in memory at a time.

    Args:
        records: what to write; image ids are unique, labels index `classes`.
        classes: names, in label order.
        folder: to be made; where it holds shards of the same records, settings and `source`, it is kept.
        split: a name, such as `train2017`.
        image_size: None stores the bytes of the files; a number stores JPEGs of that height and width.
        rows_per_group: 64 .. 256, about 8 to 32 MB of COCO images.
        rows_per_shard: rounded down to whole row groups, at least one.
        source: what else decided the content, such as digests of the annotations and of the image folder;
            JSON values, no locations. Without it an existing folder is never taken for the same.
        max_bad_share: largest share of `records` that may be left out.
        image_root: the image folder, which paths in the manifest are relative to; None gives file names only.

    Raises:
        DataError: the request is wrong, too many images are bad, or `folder` holds something else.
    """
    folder = Path(folder)
    _check_request(records, classes, rows_per_group)
    names = _relative_paths(records, image_root)
    groups_per_shard = max(1, rows_per_shard // rows_per_group)
    identity = json.loads(json.dumps(dict(source or {}))) | {
        "records": _digest([(r.image_id, name, r.labels) for r, name in zip(records, names, strict=True)]),
        "image_size": image_size,
        "rows_per_group": rows_per_group,
        "rows_per_shard": groups_per_shard * rows_per_group,
    }
    if not files.is_free(folder):
        return _existing(folder, split, classes, identity if source is not None else None)

    bad: list[BadImage] = []
    shards: list[Shard] = []
    groups = _groups(_readable_rows(records, names, image_size, bad), rows_per_group)
    with files.new_folder(folder) as unfinished:
        while group := next(groups, None):
            path = unfinished / f"shard-{len(shards):05d}.parquet"
            shards.append(_write_shard(path, chain([group], islice(groups, groups_per_shard - 1))))
        _check_bad_share(bad, len(records), max_bad_share)
        skipped = {image.image_id for image in bad}
        carried = [label for record in records if record.image_id not in skipped for label in record.labels]
        manifest = Manifest(
            format=FORMAT,
            split=split,
            num_images=len(records) - len(bad),
            classes=tuple(classes),
            positives=tuple(np.bincount(np.array(carried, np.int64), minlength=len(classes)).tolist()),
            shards=tuple(shards),
            bad_images=tuple(bad),
            source=identity,
        )
        (unfinished / MANIFEST).write_text(manifest.to_json())
    return _existing(folder, split, classes, identity)


def _check_request(records: Sequence[Record], classes: Sequence[str], rows_per_group: int) -> None:
    problems = []
    if not 64 <= rows_per_group <= 256:
        problems.append(f"rows_per_group must be 64 .. 256, but is {rows_per_group}")
    if not records:
        problems.append("there must be at least one record")
    if not 0 < len(classes) <= np.iinfo(np.int16).max:
        problems.append(f"there must be 1 .. {np.iinfo(np.int16).max} classes, but there are {len(classes)}")
    if len({record.image_id for record in records}) != len(records):
        problems.append("image ids must be unique, but some record repeats one")
    if outside := [r.image_id for r in records if r.labels and r.labels[-1] >= len(classes)]:
        problems.append(f"labels must index {len(classes)} classes, but those of images {outside[:5]} do not")
    if problems:
        raise DataError(
            f"Shards need records and settings that fit together, but {'; '.join(problems)}. "
            "Correct the records or the settings."
        )


def _check_bad_share(bad: Sequence[BadImage], num_records: int, max_bad_share: float) -> None:
    if len(bad) > max_bad_share * num_records or len(bad) == num_records:
        first = "; ".join(f"{image.path}: {image.reason}" for image in bad[:3])
        raise DataError(
            f"At most {max_bad_share:.2%} of the images may be unreadable, but {len(bad)} of {num_records} "
            f"({len(bad) / num_records:.2%}) are; the first: {first}. Repair them or raise max_bad_share."
        )


def _relative_paths(records: Sequence[Record], image_root: str | Path | None) -> list[str]:
    if image_root is None:
        return [Path(record.path).name for record in records]
    root = os.path.realpath(image_root)
    return [os.path.relpath(record.path, root) for record in records]


def _readable_rows(
    records: Sequence[Record], names: Sequence[str], image_size: int | None, bad: list[BadImage]
) -> Iterator[dict[str, Any]]:
    """Rows of SCHEMA for the images that can be decoded; the others are added to `bad`."""
    for record, name in zip(records, names, strict=True):
        try:
            data = Path(record.path).read_bytes()
            image = transforms.decode(data)
        except OSError as error:
            bad.append(BadImage(record.image_id, name, error.strerror or type(error).__name__))
            continue
        except transforms.BadImageError as error:
            bad.append(BadImage(record.image_id, name, str(error)))
            continue
        if image_size is not None and image.shape[:2] != (image_size, image_size):
            image = transforms.resize(image, image_size)
            data = transforms.encode(image)
        height, width, _ = image.shape
        yield {
            "image_id": record.image_id,
            "labels": list(record.labels),
            "width": width,
            "height": height,
            "image": data,
        }


def _groups(rows: Iterator[dict[str, Any]], rows_per_group: int) -> Iterator[list[dict[str, Any]]]:
    while group := list(islice(rows, rows_per_group)):
        yield group


def _write_shard(path: Path, groups: Iterable[list[dict[str, Any]]]) -> Shard:
    # JPEG bytes neither compress nor repeat, and their smallest and largest value help nobody.
    options = {"compression": _COMPRESSION, "use_dictionary": False, "write_statistics": ["image_id"]}
    num_groups = num_rows = 0
    with pq.ParquetWriter(path, SCHEMA, **options) as writer:
        for group in groups:
            writer.write_table(pa.Table.from_pylist(group, SCHEMA), row_group_size=len(group))
            num_groups, num_rows = num_groups + 1, num_rows + len(group)
    return Shard(path.name, num_rows, num_groups, path.stat().st_size, files.sha256(path))


def _existing(folder: Path, split: str, classes: Sequence[str], identity: dict[str, Any] | None) -> Manifest:
    """The manifest in `folder`, which must be of the same split, classes and identity."""
    manifest = read_manifest(folder, verify=False)
    if (manifest.split, manifest.classes, manifest.source) != (split, tuple(classes), identity):
        raise DataError(
            f"{folder} must be free or hold the same shards, but it holds split {manifest.split!r}, written "
            "from another source or with other settings. Name another folder, or remove this one."
        )
    return manifest


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
