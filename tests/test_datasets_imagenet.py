"""datasets.imagenet: class folders as torchvision reads them, at the pace of a directory listing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from datasets import imagenet
from datasets.schema import DataError


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_folders_are_classes_in_sorted_order_and_ids_run_through(tmp_path: Path) -> None:
    make(tmp_path, "n02/b.JPEG", "n02/a.JPEG", "n01/z.jpg", "n10/1.png", "synsets.txt", ".DS_Store", "n01/.thumb")
    (tmp_path / "n03").mkdir()
    records, classes = imagenet.read(tmp_path)
    assert classes == ["n01", "n02", "n03", "n10"]
    assert [(r.image_id, os.path.relpath(r.path, tmp_path), r.labels) for r in records] == [
        (0, "n01/z.jpg", (0,)),
        (1, "n02/a.JPEG", (1,)),
        (2, "n02/b.JPEG", (1,)),
        (3, "n10/1.png", (3,)),
    ]


def test_classes_and_labels_are_those_of_torchvision(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name in ("n9/x.png", "n10/y.png", "N1/a.png", "n10/B.png", "n10/b.png"):
        make(tmp_path, name)
        Image.fromarray(generator.integers(0, 255, (4, 4, 3), np.uint8)).save(tmp_path / name)
    theirs = ImageFolder(str(tmp_path))
    records, classes = imagenet.read(tmp_path)
    assert classes == theirs.classes
    assert [(r.path, r.labels[0]) for r in records] == [
        (os.path.realpath(path), label) for path, label in theirs.samples
    ]


def test_links_to_class_folders_and_to_the_split_are_followed(tmp_path: Path) -> None:
    make(tmp_path, "all/n01/a.jpg", "all/n02/b.jpg")
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "n02").symlink_to(tmp_path / "all" / "n02")
    (tmp_path / "train").symlink_to(tmp_path / "few")
    records, classes = imagenet.read(tmp_path / "train")
    assert classes == ["n02"]
    assert [record.path for record in records] == [str(tmp_path / "few" / "n02" / "b.jpg")]


def test_what_is_no_folder_of_class_folders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere must be a folder that can be read.*No such file"):
        imagenet.read(tmp_path / "nowhere")
    flat = make(tmp_path / "flat", "ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG")
    with pytest.raises(DataError, match=r"0 folders and no image.*Sort the images into class folders"):
        imagenet.read(flat)
    tiny = make(tmp_path / "tiny", "n01/images/a.JPEG", "n01/boxes.txt", "n02/images/b.JPEG")
    with pytest.raises(DataError, match="folders in them:\n  n01/images\n  n02/images\nMove the images up"):
        imagenet.read(tiny)


def test_no_file_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, *(f"n{label:02}/{number}.JPEG" for label in range(20) for number in range(50)))
    looked: list[object] = []
    monkeypatch.setattr(os, "stat", lambda *args, **_: looked.append(args))
    records, _ = imagenet.read(tmp_path)
    assert len(records) == 1000
    assert not looked
