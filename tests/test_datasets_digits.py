"""datasets.digits: the same arguments give the same bytes, no scan is in both splits, and labels are true."""

import hashlib
import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import coco, digits
from datasets.schema import DataError

ARGUMENTS = {"train_images": 400, "val_images": 100, "side": 48, "seed": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits.compose(tmp_path_factory.mktemp("digits") / "scenes", **ARGUMENTS)


def _tree(root: Path, split: str) -> dict:
    return json.loads((root / "annotations" / f"instances_{split}.json").read_text())


def _hashes(root: Path) -> dict[str, str]:
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_same_arguments_same_bytes(root: Path, tmp_path: Path) -> None:
    again = digits.compose(tmp_path / "elsewhere" / "again", **ARGUMENTS)
    assert _hashes(again) == _hashes(root)
    assert len(_hashes(root)) == 400 + 100 + 2 + 1


def test_another_seed_gives_other_scenes(root: Path, tmp_path: Path) -> None:
    other = digits.compose(tmp_path / "other", **ARGUMENTS | {"seed": 4})
    assert not set(_hashes(other).values()) & set(_hashes(root).values())


def test_more_scenes_keep_the_first_ones(root: Path, tmp_path: Path) -> None:
    longer = digits.compose(tmp_path / "longer", **ARGUMENTS | {"val_images": 110})
    assert _hashes(root / "val").items() <= _hashes(longer / "val").items()


def test_scans_are_split_by_digit_without_overlap(root: Path) -> None:
    scans = digits.split_scans(3)
    assert not set(scans["train"].numbers) & set(scans["val"].numbers)
    assert len(scans["train"].numbers) + len(scans["val"].numbers) == 1797
    shares = np.bincount(scans["val"].digits) / np.bincount(
        np.concatenate([scans["val"].digits, scans["train"].digits])
    )
    assert np.abs(shares - 0.2).max() < 0.01
    used = {split: {a["scan"] for a in _tree(root, split)["annotations"]} for split in ("train", "val")}
    assert used["train"] <= set(scans["train"].numbers)
    assert used["val"] <= set(scans["val"].numbers)


def test_counts_are_uniform_and_some_scenes_are_empty(root: Path) -> None:
    tree = _tree(root, "train")
    in_scene = Counter(annotation["image_id"] for annotation in tree["annotations"])
    counts = np.bincount([in_scene[image["id"]] for image in tree["images"]], minlength=5)
    assert len(counts) == 5
    assert (np.abs(counts - 80) < 4 * np.sqrt(400 * 0.2 * 0.8)).all()
    assert set(Counter(a["category_id"] for a in tree["annotations"])) == set(range(1, 11))


@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_lie_inside_and_hardly_overlap(root: Path, split: str) -> None:
    tree = _tree(root, split)
    boxes: dict[int, list[list[int]]] = {}
    for annotation in tree["annotations"]:
        x, y, width, height = annotation["bbox"]
        assert x >= 0
        assert y >= 0
        assert 2 <= width <= 48 - x
        assert 2 <= height <= 48 - y
        assert annotation["area"] == width * height
        assert annotation["iscrowd"] == 0
        boxes.setdefault(annotation["image_id"], []).append(annotation["bbox"])
    for (ax, ay, aw, ah), (bx, by, bw, bh) in (pair for b in boxes.values() for pair in combinations(b, 2)):
        shared = max(0, min(ax + aw, bx + bw) - max(ax, bx)) * max(0, min(ay + ah, by + bh) - max(ay, by))
        assert shared <= 0.35 * min(aw * ah, bw * bh)


def test_strokes_are_where_the_boxes_say(root: Path) -> None:
    tree = _tree(root, "train")
    brighter = []
    for annotation in tree["annotations"][:200]:
        pixels = np.asarray(Image.open(root / "train" / f"{annotation['image_id']:06d}.jpg"), float).mean(-1)
        x, y, width, height = annotation["bbox"]
        inside = pixels[y : y + height, x : x + width]
        brighter.append(np.percentile(inside, 95) - np.median(pixels))
    assert np.mean(np.array(brighter) > 20) > 0.98


def test_images_are_rgb_of_the_side(root: Path) -> None:
    image = Image.open(root / "val" / "000001.jpg")
    assert (image.size, image.mode, image.format) == ((48, 48), "RGB", "JPEG")


@pytest.mark.parametrize("side", [16, 80])
def test_other_sides(tmp_path: Path, side: int) -> None:
    root = digits.compose(tmp_path / "scenes", train_images=20, val_images=1, side=side, seed=0)
    assert Image.open(root / "train" / "000020.jpg").size == (side, side)
    assert all(a["bbox"][2] <= side // 2 for a in _tree(root, "train")["annotations"])


def test_it_reads_as_coco(root: Path) -> None:
    records, classes = coco.read(root / "annotations" / "instances_val.json", root / "val")
    assert tuple(classes) == digits.CLASSES
    assert len(records) == 100
    assert any(not record.labels for record in records)


def test_a_finished_folder_is_left_as_it_is(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert digits.compose(root, **ARGUMENTS) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


@pytest.mark.parametrize("change", [{"seed": 4}, {"side": 64}, {"val_images": 101}])
def test_a_folder_of_other_arguments_is_refused(root: Path, change: dict) -> None:
    with pytest.raises(DataError, match="must hold digit scenes made with"):
        digits.compose(root, **ARGUMENTS | change)


def test_a_foreign_or_unfinished_folder_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="something else"):
        digits.compose(tmp_path, **ARGUMENTS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_interrupted_run_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(digits, "_scene", interrupt)
        with pytest.raises(KeyboardInterrupt):
            digits.compose(tmp_path / "scenes", **ARGUMENTS)
    assert list(tmp_path.iterdir()) == []


def test_the_second_of_two_composers_takes_the_first_ones_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"train_images": 6, "val_images": 2, "side": 32, "seed": 0}
    split_scans = digits.split_scans

    def overtaken(seed: int) -> dict[str, digits.Scans]:
        monkeypatch.setattr(digits, "split_scans", split_scans)
        digits.compose(tmp_path / "scenes", **small)
        return split_scans(seed)

    monkeypatch.setattr(digits, "split_scans", overtaken)
    assert digits.compose(tmp_path / "scenes", **small) == tmp_path / "scenes"
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]
    assert len(_hashes(tmp_path / "scenes")) == 6 + 2 + 2 + 1


def test_a_side_that_cannot_show_a_digit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="side=15"):
        digits.compose(tmp_path / "scenes", **ARGUMENTS | {"side": 15})
