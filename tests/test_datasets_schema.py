"""datasets.schema: a damaged or made-up manifest is refused, and its digest names the content only."""

import json
from dataclasses import replace

import pytest

from datasets.schema import BadImage, DataError, Manifest, Record, Shard

MANIFEST = Manifest(
    format=1,
    split="val",
    num_images=3,
    classes=("cat", "dög"),
    positives=(2, 0),
    shards=(Shard("shard-00000.parquet", rows=3, row_groups=1, bytes=99, sha256="0" * 64),),
    bad_images=(BadImage(7, "a/7.jpg", "the file is empty"),),
    source={"annotations": "ab12", "image_size": None, "nested": {"list": [1, 2.5]}},
)


def test_json_round_trip() -> None:
    read = Manifest.from_json(MANIFEST.to_json())
    assert read == MANIFEST
    assert read.digest == MANIFEST.digest


def test_digest_depends_on_every_field_and_not_on_the_order_of_source() -> None:
    reordered = replace(MANIFEST, source=dict(reversed(MANIFEST.source.items())))
    assert reordered.digest == MANIFEST.digest
    changed = [
        replace(MANIFEST, split="train"),
        replace(MANIFEST, classes=("cat", "cow")),
        replace(MANIFEST, positives=(1, 0)),
        replace(MANIFEST, shards=(replace(MANIFEST.shards[0], sha256="1" * 64),)),
        replace(MANIFEST, bad_images=()),
        replace(MANIFEST, source={}),
    ]
    assert len({manifest.digest for manifest in [MANIFEST, *changed]}) == len(changed) + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positives": (1,)}, "2 classes but 1 counts"),
        ({"num_images": 4}, "num_images is 4 but the shards have 3 rows"),
        ({"shards": (replace(MANIFEST.shards[0], file="../x.parquet"),)}, "not the plain name"),
        ({"shards": (replace(MANIFEST.shards[0], sha256="no"),)}, "sha256 of"),
        ({"shards": MANIFEST.shards * 2, "num_images": 6}, "listed twice"),
        ({"source": {"root": "/data/coco"}}, "names the location '/data/coco'"),
        ({"source": {"deep": [{"root": "s3://bucket/coco"}]}}, "names the location 's3://bucket/coco'"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(change: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(MANIFEST, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "must have format 1, but this one has 2"),
        ({"extra": 1}, "extra"),
        ({"num_images": "3"}, "'3' is not int"),
        ({"num_images": True}, "True is not int"),
        ({"classes": [1, 2]}, "1 is not str"),
        ({"classes": None}, "must hold the fields"),
        ({"shards": [{"file": "x.parquet"}]}, "Shard has the fields"),
        ({"bad_images": [[1]]}, "BadImage has the fields"),
    ],
)
def test_a_malformed_manifest_is_refused(change: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Manifest.from_json(json.dumps(json.loads(MANIFEST.to_json()) | change))


@pytest.mark.parametrize("text", ["", MANIFEST.to_json()[:-20], "[" * 100_000])
def test_a_truncated_manifest_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="must be JSON"):
        Manifest.from_json(text)


def test_a_missing_field_is_named() -> None:
    tree = json.loads(MANIFEST.to_json())
    del tree["split"]
    with pytest.raises(DataError, match="split"):
        Manifest.from_json(json.dumps(tree))


@pytest.mark.parametrize("labels", [(2, 1), (1, 1), (-1, 0)])
def test_record_labels_are_sorted_unique_indices(labels: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="image 5"):
        Record(5, "5.jpg", labels)
