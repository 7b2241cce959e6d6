"""Reading shards: the manifest, compared with the files beside it; rows; the index of ids and labels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from datasets import files
from datasets.schema import DataError, Manifest, Shard

MANIFEST = "manifest.json"


def read_manifest(folder: str | Path, *, verify: bool = True) -> Manifest:
    """Read the manifest and compare it with the files beside it.

    Args:
        folder: as given to `shards.write`.
        verify: also compare the sha256 of every shard, which reads them whole; sizes are always compared.

    Raises:
        DataError: the manifest is missing, malformed or of another format; a shard is missing or differs; or
            a Parquet file lies there that the manifest does not list.
    """
    folder = Path(folder)
    try:
        text = (folder / MANIFEST).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"A finished shard set has a {MANIFEST}, but the one of {folder} cannot be read "
            f"({type(error).__name__}). Name another folder, or remove this one and write the shards again."
        ) from error
    try:
        manifest = Manifest.from_json(text)
    except DataError as error:
        raise DataError(f"{folder / MANIFEST}: {error}") from error
    found = files.sizes(folder)
    listed = {shard.file for shard in manifest.shards}
    unlisted = sorted(name for name in found if name.endswith(".parquet") and name not in listed)
    problems = [problem for s in manifest.shards if (problem := _difference(folder, s, found, verify))]
    problems += [f"{name} is not listed" for name in unlisted]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise DataError(
            f"Shards must be those that {folder / MANIFEST} lists, but {'; '.join(problems[:5])}{more}. "
            "Copy the folder again, or remove it and write the shards again."
        )
    return manifest


def read_rows(
    folder: str | Path,
    shard_file: str,
    row_group: int,
    rows: Sequence[int] | np.ndarray | None = None,
    columns: Sequence[str] | None = None,
) -> dict[str, list[Any]]:
    """Read one row group.

    Args:
        folder, shard_file, row_group: where the rows lie.
        rows: their positions within the group, in any order; None means all.
        columns: names of columns; None means all.

    Returns:
        Column name -> one value a row: `image` as bytes, `labels` as a list of class indices, others as int.

    Raises:
        DataError: the file is missing or damaged.
    """
    with files.open_parquet(Path(folder) / shard_file) as file:
        table = file.read_row_group(row_group, columns=None if columns is None else list(columns))
    if rows is not None:
        table = table.take(pa.array(np.asarray(rows, np.int64)))
    return table.to_pydict()


def group_rows(folder: str | Path, shard_file: str) -> list[int]:
    """Rows in each row group of a shard, from its footer; DataError where the file is missing or damaged."""
    with files.open_parquet(Path(folder) / shard_file) as file:
        return [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]


def index(manifest: Manifest, folder: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Ids and labels of all rows, in the order in which they lie in the shards; no image is read.

    Returns:
        Image ids (N,) int64, and multi-hot labels (N, K) uint8.

    Raises:
        DataError: a shard is missing or damaged.
    """
    image_ids, labels = [], []
    for shard in manifest.shards:
        with files.open_parquet(Path(folder) / shard.file) as file:
            table = file.read(columns=["image_id", "labels"])
        image_ids.append(table["image_id"].to_numpy())
        labels.append(multi_hot(table["labels"].to_pylist(), len(manifest.classes)))
    return np.concatenate(image_ids), np.concatenate(labels)


def multi_hot(labels: Sequence[Sequence[int]], num_classes: int) -> np.ndarray:
    """N lists of class indices -> (N, num_classes) uint8 of 0 and 1; IndexError for an index out of range."""
    hot = np.zeros((len(labels), num_classes), np.uint8)
    rows = np.repeat(np.arange(len(labels)), [len(row) for row in labels])
    columns = np.fromiter(chain.from_iterable(labels), np.int64, count=len(rows))
    if len(columns) and columns.min() < 0:  # NumPy would count it from the end
        raise IndexError(f"class indices must be >= 0, but got {columns.min()}")
    hot[rows, columns] = 1
    return hot


def _difference(folder: Path, shard: Shard, found: dict[str, int], verify: bool) -> str | None:
    if shard.file not in found:
        return f"{shard.file} is missing"
    if found[shard.file] != shard.bytes:
        return f"{shard.file} has {found[shard.file]} bytes instead of {shard.bytes}"
    if verify and (digest := files.sha256(folder / shard.file)) != shard.sha256:
        return f"{shard.file} has sha256 {digest[:12]}... instead of {shard.sha256[:12]}..."
    return None
