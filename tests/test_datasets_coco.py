"""datasets.coco: labels equal pycocotools' index on real data, and each kind of mistake is named."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from datasets import coco
from datasets.schema import DataError
from datasets.shards import multi_hot

COCO_MINI = Path(__file__).parents[1].parent / "shared" / "data" / "coco-mini"
TREE: dict[str, Any] = {
    "images": [
        {"id": 30, "file_name": "c.jpg"},
        {"id": 10, "file_name": "sub/a.jpg"},
        {"id": 20, "file_name": "b.jpg"},
    ],
    "annotations": [
        {"id": 1, "image_id": 10, "category_id": 7, "iscrowd": 1},
        {"id": 2, "image_id": 10, "category_id": 3, "iscrowd": 0},
        {"id": 3, "image_id": 10, "category_id": 3, "iscrowd": 0},
        {"id": 4, "image_id": 30, "category_id": 90, "iscrowd": 0},
    ],
    "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}, {"id": 7, "name": "train"}],
}


def _write(folder: Path, tree: object) -> tuple[Path, Path]:
    images = folder / "images"
    images.mkdir(exist_ok=True)
    path = folder / "instances.json"
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return path, images


def test_labels_follow_sorted_category_ids_and_crowds_count(tmp_path: Path) -> None:
    path, images = _write(tmp_path, TREE)
    records, classes = coco.read(path, images)
    assert classes == ["car", "train", "toothbrush"]
    assert [(record.image_id, record.labels) for record in records] == [(10, (0, 1)), (20, ()), (30, (2,))]
    assert records[0].path == str(images.resolve() / "sub" / "a.jpg")


def test_images_without_annotation_are_dropped_on_request(tmp_path: Path) -> None:
    records, classes = coco.read(*_write(tmp_path, TREE), keep_unlabelled=False)
    assert [record.image_id for record in records] == [10, 30]
    assert len(classes) == 3


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_real_labels_equal_the_index_of_pycocotools(split: str) -> None:
    annotations = COCO_MINI / "annotations" / f"instances_{split}.json"
    records, classes = coco.read(annotations, COCO_MINI / split)
    labels = multi_hot([record.labels for record in records], len(classes))
    index = COCO(str(annotations))
    categories = sorted(index.getCatIds())
    assert [index.cats[category]["name"] for category in categories] == classes
    assert [len(index.getImgIds(catIds=[category])) for category in categories] == labels.sum(0).tolist()
    assert [record.image_id for record in records] == sorted(index.getImgIds())
    assert all(Path(record.path).is_file() for record in records)
    assert np.array_equal(labels.shape, (len(index.imgs), 80))


def test_nothing_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco.read(*_write(tmp_path, TREE))
    assert capsys.readouterr() == ("", "")


def test_source_digest(tmp_path: Path) -> None:
    path, _ = _write(tmp_path, TREE)
    assert coco.source_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(DataError, match="No such file"):
        coco.source_digest(tmp_path / "missing.json")


def _changed(section: str, position: int, **change: object) -> dict[str, Any]:
    """TREE with one entry changed; None removes a key."""
    tree = copy.deepcopy(TREE)
    entry = tree[section][position] | change
    tree[section][position] = {key: value for key, value in entry.items() if value is not None}
    return tree


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (json.dumps(TREE)[:200], "must be valid JSON.*truncated"),
        ("", "must be valid JSON"),
        ("[" * 100_000, "must be valid JSON"),
        (json.dumps(TREE).replace('"iscrowd": 1', '"iscrowd": NaN'), "holds NaN"),
        (json.dumps(TREE).replace('"iscrowd": 1', '"iscrowd": -Infinity'), "holds -Infinity"),
        ([], "the list 'images' is missing"),
        ({key: TREE[key] for key in ("images", "categories")}, "the list 'annotations' is missing"),
        (TREE | {"images": {"id": 1}}, "the list 'images' is missing"),
        (TREE | {"images": [7]}, r"images\[0\]: 'id' is missing"),
        (_changed("images", 1, file_name=None), r"images\[1\]: 'file_name' is missing"),
        (_changed("images", 1, id="10"), r"images\[1\]: 'id' is '10' instead of int"),
        (_changed("annotations", 2, image_id=None), r"annotations\[2\]: 'image_id' is missing"),
        (_changed("categories", 0, name=None), r"categories\[0\]: 'name' is missing"),
        (_changed("images", 1, id=30), r"images\[1\]: id 30 is used before"),
        (_changed("categories", 2, id=3), r"categories\[2\]: id 3 is used before"),
        (_changed("annotations", 3, category_id=4), r"annotations\[3\] \(id 4\): category_id 4 is not in"),
        (_changed("annotations", 0, image_id=11), r"annotations\[0\] \(id 1\): image_id 11 is not in"),
        (TREE | {"images": [], "annotations": []}, "leaves 0 and 3"),
        (TREE | {"categories": [], "annotations": []}, "leaves 3 and 0"),
    ],
)
def test_each_mistake_is_named(tmp_path: Path, tree: object, message: str) -> None:
    path, images = _write(tmp_path, tree)
    with pytest.raises(DataError, match=message) as caught:
        coco.read(path, images)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/etc/passwd", "is absolute"),
        ("../a.jpg", "goes up"),
        ("sub/../../a.jpg", "goes up"),
        ("sub\\a.jpg", "backslash"),
        ("a.jpg\0.png", "NUL"),
        ("", "is empty"),
        ("\ud800.jpg", "not valid Unicode"),
        ("http://169.254.169.254/latest", "URL scheme"),
        ("s3://bucket/a.jpg", "URL scheme"),
        ("C:a.jpg", "drive"),
        ("link.jpg", "leads out of the image folder"),
        ("folder/secret.jpg", "leads out of the image folder"),
    ],
)
def test_a_file_name_cannot_leave_the_image_folder(tmp_path: Path, name: str, message: str) -> None:
    path, images = _write(tmp_path, _changed("images", 2, file_name=name))
    outside = tmp_path / "images-private"  # shares a prefix with the image folder
    outside.mkdir()
    (outside / "secret.jpg").write_bytes(b"secret")
    (images / "link.jpg").symlink_to(outside / "secret.jpg")
    (images / "folder").symlink_to(outside)
    with pytest.raises(DataError, match=message) as caught:
        coco.read(path, images)
    assert "images[2] (id 20)" in str(caught.value)


def test_links_inside_the_image_folder_and_to_it_are_followed(tmp_path: Path) -> None:
    path, images = _write(tmp_path, TREE)
    (images / "real.jpg").write_bytes(b"")
    (images / "b.jpg").symlink_to(images / "real.jpg")
    (tmp_path / "alias").symlink_to(images)
    assert coco.read(path, tmp_path / "alias") == coco.read(path, images)


def test_all_mistakes_of_a_kind_are_reported_and_long_lists_cut(tmp_path: Path) -> None:
    tree = copy.deepcopy(TREE)
    for image in tree["images"]:
        image["file_name"] = "../" + image["file_name"]
    tree["annotations"] *= 4
    for annotation in tree["annotations"]:
        annotation["category_id"] = 1
    with pytest.raises(DataError) as caught:
        coco.read(*_write(tmp_path, tree))
    assert "and 9 more" in str(caught.value)
    assert str(caught.value).count("\n") == 12


def test_missing_files_and_folders(tmp_path: Path) -> None:
    path, images = _write(tmp_path, TREE)
    with pytest.raises(DataError, match=r"missing\.json is not \(No such file"):
        coco.read(tmp_path / "missing.json", images)
    with pytest.raises(DataError, match="must lie in a folder"):
        coco.read(path, tmp_path / "nowhere")
    assert len(coco.read(path, images)[0]) == 3  # image files are looked at when shards are written
