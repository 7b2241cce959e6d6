"""datasets.shard_reader: rows and labels come back as asked for, and a damaged set is refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import shards, transforms
from datasets.schema import DataError, Record

SHARD = "shard-00001.parquet"


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """300 times one image; the i-th carries the classes of i's lowest three bits."""
    path = tmp_path_factory.mktemp("images") / "image.jpg"
    path.write_bytes(transforms.encode(np.zeros((8, 10, 3), np.uint8)))
    return [Record(1000 + i, str(path), tuple(bit for bit in range(3) if i >> bit & 1)) for i in range(300)]


@pytest.fixture
def written(records: list[Record], tmp_path: Path) -> Path:
    """Shards of 128, 128 and 44 rows."""
    folder = tmp_path / "shards"
    shards.write(records, ("a", "b", "c"), folder, split="val", rows_per_group=64, rows_per_shard=128)
    return folder


def test_read_rows_selects_rows_in_the_order_asked_for(written: Path) -> None:
    read = shards.read_rows(written, SHARD, 1, rows=np.array([5, 0, 63]))
    assert read["image_id"] == [1197, 1192, 1255]
    assert (read["width"], read["height"]) == ([10] * 3, [8] * 3)
    assert shards.read_rows(written, SHARD, 1, rows=[], columns=["image"]) == {"image": []}


def test_index_equals_the_records(records: list[Record], written: Path) -> None:
    manifest = shards.read_manifest(written)
    image_ids, labels = shards.index(manifest, written)
    assert (image_ids.dtype, labels.dtype) == (np.int64, np.uint8)
    assert image_ids.tolist() == [record.image_id for record in records]
    assert np.array_equal(labels, shards.multi_hot([record.labels for record in records], 3))
    assert labels.sum(0).tolist() == list(manifest.positives)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sets(st.integers(0, 6)), max_size=20))
def test_multi_hot(labels: list[set[int]]) -> None:
    hot = shards.multi_hot([sorted(row) for row in labels], 7)
    assert hot.shape == (len(labels), 7)
    assert [set(np.flatnonzero(row).tolist()) for row in hot] == labels


@pytest.mark.parametrize("label", [-1, 3])
def test_multi_hot_refuses_what_is_no_class(label: int) -> None:
    with pytest.raises(IndexError):
        shards.multi_hot([[0], [label]], 3)


def _edit(folder: Path, **change: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def _flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "has a manifest.json"),
    "no folder": (shutil.rmtree, "has a manifest.json"),
    "truncated manifest": (
        lambda folder: (folder / "manifest.json").write_text((folder / "manifest.json").read_text()[:-9]),
        "manifest.json: A manifest must be JSON",
    ),
    "other format": (lambda folder: _edit(folder, format=0), "must have format 1, but this one has 0"),
    "wrong count": (lambda folder: _edit(folder, num_images=7), "num_images is 7"),
    "missing shard": (lambda folder: (folder / SHARD).unlink(), f"{SHARD} is missing"),
    "truncated shard": (
        lambda folder: (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:-10]),
        f"{SHARD} has .* bytes instead of",
    ),
    "flipped bit": (lambda folder: _flip_a_bit(folder / SHARD), f"{SHARD} has sha256"),
    "unlisted shard": (
        lambda folder: shutil.copy(folder / SHARD, folder / "more.parquet"),
        "more.parquet is not listed",
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_named(written: Path, damage: Callable[[Path], object], message: str) -> None:
    shards.read_manifest(written)
    damage(written)
    with pytest.raises(DataError, match=message):
        shards.read_manifest(written)


def test_without_verify_only_the_content_is_not_compared(written: Path) -> None:
    _flip_a_bit(written / SHARD)
    shards.read_manifest(written, verify=False)
    (written / SHARD).unlink()
    with pytest.raises(DataError, match="missing"):
        shards.read_manifest(written, verify=False)


def test_reading_a_damaged_shard_names_it(written: Path) -> None:
    (written / SHARD).write_bytes((written / SHARD).read_bytes()[:-10])
    for read in (lambda: shards.read_rows(written, SHARD, 0), lambda: shards.group_rows(written, SHARD)):
        with pytest.raises(DataError, match=f"whole Parquet file, but .*{SHARD}"):
            read()
