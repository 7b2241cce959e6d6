"""datasets.shards: what was written is read back bit for bit, and nothing is left of a write that fails."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from datasets import coco, shards, transforms
from datasets.schema import DataError, Manifest, Record

COCO_MINI = Path(__file__).parents[1].parent / "shared" / "data" / "coco-mini"
CLASSES = ("red", "green", "blue")


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """300 small images; image i carries the classes of i's lowest three bits."""
    folder = tmp_path_factory.mktemp("images")
    made = []
    for number in range(300):
        path = folder / f"{number:03d}.jpg"
        path.write_bytes(transforms.encode(np.full((8, 10, 3), number % 256, np.uint8)))
        made.append(Record(1000 + number, str(path), tuple(bit for bit in range(3) if number >> bit & 1)))
    return made


@pytest.fixture
def written(records: list[Record], tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    shards.write(records, CLASSES, folder, split="val", rows_per_group=64, rows_per_shard=128)
    return folder


def _rows(manifest: Manifest, folder: Path) -> list[tuple[int, tuple[int, ...], bytes]]:
    rows: list[tuple[int, tuple[int, ...], bytes]] = []
    for shard in manifest.shards:
        for group in range(shard.row_groups):
            read = shards.read_rows(folder, shard.file, group)
            rows += zip(read["image_id"], map(tuple, read["labels"]), read["image"], strict=True)
    return rows


def test_round_trip(records: list[Record], written: Path) -> None:
    manifest = shards.read_manifest(written)
    expected = [(record.image_id, record.labels, Path(record.path).read_bytes()) for record in records]
    assert _rows(manifest, written) == expected
    assert (manifest.split, manifest.num_images, manifest.classes) == ("val", 300, CLASSES)
    assert manifest.bad_images == ()


def test_row_groups_and_shards_have_the_sizes_asked_for(written: Path) -> None:
    manifest = shards.read_manifest(written)
    assert [(shard.rows, shard.row_groups) for shard in manifest.shards] == [(128, 2), (128, 2), (44, 1)]
    assert [shards.group_rows(written, s.file) for s in manifest.shards] == [[64, 64], [64, 64], [44]]


def test_rows_per_shard_is_rounded_down_to_whole_groups(records: list[Record], tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"rows_per_group": 100, "rows_per_shard": 250}
    manifest = shards.write(records, CLASSES, tmp_path / "s", split="x", **sizes)
    assert [(shard.rows, shard.row_groups) for shard in manifest.shards] == [(200, 2), (100, 1)]


def test_layout_of_the_columns(written: Path) -> None:
    file = pq.ParquetFile(written / "shard-00000.parquet")
    assert file.schema_arrow.remove_metadata() == shards.SCHEMA
    group = file.metadata.row_group(0)
    columns = {group.column(n).path_in_schema: group.column(n) for n in range(group.num_columns)}
    assert list(columns)[:2] == ["image_id", "labels.list.element"]
    image = columns["image"]
    assert image.compression == "UNCOMPRESSED"
    assert image.statistics is None
    assert not any("DICTIONARY" in encoding for encoding in image.encodings)
    assert columns["image_id"].statistics.min == 1000


def test_real_images_and_a_digest_that_travels(tmp_path: Path) -> None:
    records, classes = coco.read(COCO_MINI / "annotations" / "instances_val2017.json", COCO_MINI / "val2017")
    options: dict[str, Any] = {
        "split": "val2017",
        "source": {"annotations": "abc"},
        "image_root": COCO_MINI / "val2017",
    }
    folder = tmp_path / "shards"
    manifest = shards.write(records, classes, folder, **options)
    assert manifest.num_images == 79
    [data] = shards.read_rows(folder, "shard-00000.parquet", 0, rows=[3])["image"]
    assert data == Path(records[3].path).read_bytes()
    assert COCO_MINI.name not in manifest.to_json()
    moved = shutil.copytree(COCO_MINI / "val2017", tmp_path / "moved")
    again, _ = coco.read(COCO_MINI / "annotations" / "instances_val2017.json", moved)
    elsewhere = shards.write(again, classes, tmp_path / "b" / "c", **options | {"image_root": moved})
    assert elsewhere.digest == manifest.digest


def test_images_are_resized_on_request(records: list[Record], tmp_path: Path) -> None:
    shards.write(records[:70], CLASSES, tmp_path / "s", split="x", rows_per_group=64, image_size=6)
    read = shards.read_rows(tmp_path / "s", "shard-00000.parquet", 1)
    assert read["width"] == read["height"] == [6] * 6
    assert np.abs(transforms.decode(read["image"][0]).astype(int) - 64).max() <= 2


def _with_bad(records: list[Record], folder: Path) -> list[Record]:
    """Two of the records spoilt: one file is missing, one is cut."""
    (folder / "sub").mkdir()
    (folder / "sub" / "cut.jpg").write_bytes(Path(records[7].path).read_bytes()[:-50])
    spoilt = list(records)
    spoilt[3] = Record(records[3].image_id, str(folder / "gone.jpg"), records[3].labels)
    spoilt[7] = Record(records[7].image_id, str(folder / "sub" / "cut.jpg"), records[7].labels)
    return spoilt


def test_bad_images_are_left_out_and_listed(records: list[Record], tmp_path: Path) -> None:
    spoilt = _with_bad(records, tmp_path)
    folder = tmp_path / "s"
    manifest = shards.write(spoilt, CLASSES, folder, split="x", rows_per_group=64, image_root=tmp_path)
    assert [(image.image_id, image.path) for image in manifest.bad_images] == [
        (1003, "gone.jpg"),
        (1007, "sub/cut.jpg"),
    ]
    assert manifest.bad_images[0].reason == "No such file or directory"
    assert "truncated" in manifest.bad_images[1].reason.lower()
    assert manifest.num_images == 298
    assert [row[0] for row in _rows(manifest, folder)] == [
        record.image_id for record in records if record.image_id not in (1003, 1007)
    ]
    assert manifest.positives == tuple(shards.index(manifest, folder)[1].sum(0))
    assert shards.group_rows(folder, "shard-00000.parquet") == [64, 64, 64, 64, 42]


def test_too_many_bad_images_fail_and_leave_nothing(records: list[Record], tmp_path: Path) -> None:
    spoilt = _with_bad(records, tmp_path)
    before = set(tmp_path.iterdir())
    message = r"2 of 300 \(0\.67%\).*gone\.jpg: No such file.*cut\.jpg: .*Truncated"
    with pytest.raises(DataError, match=message):
        shards.write(spoilt, CLASSES, tmp_path / "s", split="x", max_bad_share=0.005)
    assert set(tmp_path.iterdir()) == before


def test_only_bad_images_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 1 \(100\.00%\)"):
        shards.write([Record(1, "gone.jpg", ())], CLASSES, tmp_path / "s", split="x", max_bad_share=1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows_per_group": 63}, "rows_per_group must be 64 .. 256, but is 63"),
        ({"rows_per_group": 257}, "rows_per_group must be 64 .. 256, but is 257"),
        ({"records": []}, "at least one record"),
        ({"records": [Record(1, "a", ()), Record(1, "b", ())]}, "ids must be unique"),
        ({"records": [Record(5, "a", (0, 3))]}, r"those of images \[5\] do not"),
        ({"classes": ()}, "there are 0"),
    ],
)
def test_a_wrong_request_is_refused_at_once(tmp_path: Path, change: dict, message: str) -> None:
    request: dict[str, Any] = {"records": [Record(1, "a", (0,))], "classes": CLASSES, "split": "x"}
    with pytest.raises(DataError, match=message):
        shards.write(folder=tmp_path / "s", **request | change)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_nothing_to_read(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, decoded = transforms.decode, []

    def interrupted(data: bytes) -> np.ndarray:
        decoded.append(data)
        if len(decoded) == 200:
            assert list(tmp_path.glob(".*.tmp/*.parquet")), "a shard should have been written by now"
            assert not (tmp_path / "s").exists()
            raise KeyboardInterrupt
        return decode(data)

    monkeypatch.setattr(transforms, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shards.write(records, CLASSES, tmp_path / "s", split="x", rows_per_group=64, rows_per_shard=64)
    assert list(tmp_path.iterdir()) == []


def test_a_finished_set_is_taken_and_another_one_refused(records: list[Record], tmp_path: Path) -> None:
    folder = tmp_path / "s"
    options: dict[str, Any] = {"split": "x", "rows_per_group": 64, "source": {"images": "abc"}}
    first = shards.write(records, CLASSES, folder, **options)
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert shards.write(records, CLASSES, folder, **options) == first
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    for change in ({"source": {"images": "abd"}}, {"source": None}, {"rows_per_group": 128}, {"split": "y"}):
        with pytest.raises(DataError, match="must be free or hold the same shards"):
            shards.write(records, CLASSES, folder, **options | change)
    with pytest.raises(DataError, match="must be free or hold the same shards"):
        shards.write(records[:-1], CLASSES, folder, **options)
    assert shards.read_manifest(folder) == first


def test_a_foreign_folder_is_refused_and_kept(records: list[Record], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match=r"has a manifest\.json"):
        shards.write(records, CLASSES, tmp_path, split="x")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_second_of_two_writers_takes_the_first_ones_folder(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, decode = tmp_path / "s", transforms.decode
    options: dict[str, Any] = {"split": "x", "source": {"images": "abc"}}

    def overtaken(data: bytes) -> np.ndarray:
        monkeypatch.setattr(transforms, "decode", decode)
        shards.write(records, CLASSES, folder, **options)
        return decode(data)

    monkeypatch.setattr(transforms, "decode", overtaken)
    manifest = shards.write(records, CLASSES, folder, **options)
    assert manifest == shards.read_manifest(folder)
    assert list(tmp_path.iterdir()) == [folder]
