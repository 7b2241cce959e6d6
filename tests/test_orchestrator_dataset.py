"""orchestrator.execution.dataset: every source is checked before anything starts, and becomes shards once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datasets import coco, digits, shards, words
from datasets.config import DataConfig
from datasets.schema import DataError
from orchestrator.execution import dataset

COCO_MINI = Path(__file__).parents[1].parent / "shared" / "data" / "coco-mini"


def config(**keys: Any) -> DataConfig:
    return DataConfig.model_validate(keys)


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (value, 255 - value, 60)).save(path)


@pytest.fixture
def folders(tmp_path: Path) -> DataConfig:
    """ImageNet's layout: three classes, train and val."""
    for split, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(("cat", "dog", "emu")):
            for number in range(count):
                picture(tmp_path / "data" / split / name / f"{number}.JPEG", 40 * label + number)
    return config(source="imagenet", root=str(tmp_path / "data"), train_split="train", val_split="val")


@pytest.fixture
def listed(tmp_path: Path) -> DataConfig:
    """PaddleClas's layout, with names relative to the folder of the split."""
    root = tmp_path / "data"
    lines = {"train": ["1,0,0", "0,1,0", "1,0,1", "0,0,0", "0,0,1", "1,1,0"], "val": ["1,0,1", "0,1,0", "0,0,1"]}
    for split, columns in lines.items():
        for number in range(len(columns)):
            picture(root / f"{split}2017" / f"{number}.jpg", 20 * number)
        text = "".join(f"{number}.jpg\t{column}\n" for number, column in enumerate(columns))
        (root / f"multilabel_{split}_list.txt").write_text(text)
    (root / "COCO2017_labels.txt").write_text("cat\ntraffic light\ndog\n")
    return config(source="lists", root=str(root))


@pytest.fixture
def vectors(listed: DataConfig) -> str:
    (Path(str(listed.root)) / "glove.txt").write_text("cat 1 0 2\ntraffic 3 0 0\nlight 0 3 0\ndog 1 1 1\n")
    return "glove.txt"


def rows(prepared: dataset.Prepared, which: int) -> list[tuple[int, list[int]]]:
    """Image id and labels of every row, by image id, read without the code under test."""
    tables = [pq.read_table(path) for path in sorted(prepared.folders[which].glob("*.parquet"))]
    return sorted((row["image_id"], row["labels"]) for table in tables for row in table.to_pylist())


def prepare(data: DataConfig, cache: Path) -> dataset.Prepared:
    return dataset.prepare(data, dataset.look(data), cache)


def files_under(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def test_class_folders_become_shards(folders: DataConfig, tmp_path: Path) -> None:
    source = dataset.look(folders)
    assert (source.classes, source.num_train, source.num_val) == (("cat", "dog", "emu"), 12, 6)
    prepared = prepare(folders, tmp_path / "cache")
    assert rows(prepared, 0) == [(number, [number // 4]) for number in range(12)]
    assert prepared.manifests[1].positives == (2, 2, 2)


def test_lists_become_shards_with_names_relative_to_the_split_or_to_the_root(
    listed: DataConfig, tmp_path: Path
) -> None:
    source = dataset.look(listed)
    assert (source.classes, source.num_train, source.num_val) == (("cat", "traffic light", "dog"), 6, 3)
    assert rows(prepare(listed, tmp_path / "cache"), 0)[:3] == [(1, [0]), (2, [1]), (3, [0, 2])]
    root = Path(str(listed.root))
    for split in ("train", "val"):
        path = root / f"multilabel_{split}_list.txt"
        path.write_text("".join(f"{split}2017/{line}\n" for line in path.read_text().splitlines()))
    assert rows(prepare(listed, tmp_path / "cache"), 0)[:3] == [(1, [0]), (2, [1]), (3, [0, 2])]
    unlabelled = listed.model_copy(update={"keep_unlabelled": False})
    assert dataset.look(unlabelled).num_train == 5


@pytest.mark.parametrize("source", ["folders", "listed"])
def test_shards_are_written_once_wherever_the_data_lies_and_anew_when_it_changes(
    source: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    data: DataConfig = request.getfixturevalue(source)
    cache = tmp_path / "cache"
    first = prepare(data, cache)
    written = {path: path.stat().st_mtime_ns for path in files_under(cache)}
    shutil.move(str(data.root), tmp_path / "moved")
    moved = data.model_copy(update={"root": str(tmp_path / "moved")})
    again = prepare(moved, cache)
    assert (again.digest, again.folders) == (first.digest, first.folders)
    assert {path: path.stat().st_mtime_ns for path in files_under(cache)} == written
    assert not any(str(tmp_path) in path.read_text() for path in cache.rglob("manifest.json"))
    changed = next(path for path in sorted(files_under(tmp_path / "moved")) if path.suffix in (".jpg", ".JPEG"))
    Image.effect_noise((40, 40), 90).convert("RGB").save(changed)
    assert prepare(moved, cache).digest != first.digest


def test_a_changed_label_in_a_list_gives_other_shards(listed: DataConfig, tmp_path: Path) -> None:
    first = prepare(listed, tmp_path / "cache")
    path = Path(str(listed.root)) / "multilabel_train_list.txt"
    path.write_text(path.read_text().replace("1.jpg\t0,1,0", "1.jpg\t0,1,1"))
    second = prepare(listed, tmp_path / "cache")
    assert (first.folders[0] == second.folders[0], first.folders[1] == second.folders[1]) == (False, True)
    (Path(str(listed.root)) / "COCO2017_labels.txt").write_text("cat\ntraffic light\nwolf\n")
    assert prepare(listed, tmp_path / "cache").manifests[1].classes == ("cat", "traffic light", "wolf")


def test_splits_of_different_classes_are_refused(folders: DataConfig) -> None:
    shutil.rmtree(Path(str(folders.root)) / "val" / "emu")
    with pytest.raises(DataError, match=r"same classes in the same order.*\['emu'\]"):
        dataset.look(folders)


def test_a_root_is_needed_and_the_images_of_a_list_must_lie_somewhere(listed: DataConfig) -> None:
    with pytest.raises(DataError, match=r"data\.root must name the folder.*data\.source=lists"):
        dataset.look(config(source="lists"))
    shutil.rmtree(Path(str(listed.root)) / "val2017")
    with pytest.raises(DataError, match=r"the images of .*multilabel_val_list\.txt must lie in"):
        dataset.look(listed)


def test_unseen_classes_leave_training_and_stay_in_validation(listed: DataConfig, tmp_path: Path) -> None:
    data = listed.model_copy(update={"unseen_list": "dog"})
    source = dataset.look(data)
    assert (source.unseen, source.num_train, source.num_val) == ((2,), 4, 3)
    prepared = prepare(data, tmp_path / "cache")
    assert prepared.unseen == (2,)
    assert rows(prepared, 0) == [(1, [0]), (2, [1]), (4, []), (6, [0, 1])]
    assert rows(prepared, 1) == [(1, [0, 2]), (2, [1]), (3, [2])]
    kept = prepare(data.model_copy(update={"drop_unseen": False}), tmp_path / "cache")
    assert rows(kept, 0) == [(1, [0]), (2, [1]), (3, [0]), (4, []), (5, []), (6, [0, 1])]
    plain = prepare(listed, tmp_path / "cache")
    assert prepared.folders[1] == kept.folders[1] == plain.folders[1]
    assert len({prepared.digest, kept.digest, plain.digest}) == 3


def test_training_and_judging_on_one_split_does_not_hide_the_unseen_labels(listed: DataConfig, tmp_path: Path) -> None:
    keys = {"unseen_list": "dog", "drop_unseen": False, "val_split": "train2017", "val_list": listed.train_list}
    prepared = prepare(listed.model_copy(update=keys), tmp_path / "cache")
    assert [labels for _, labels in rows(prepared, 0)] == [[0], [1], [0], [], [], [0, 1]]
    assert [labels for _, labels in rows(prepared, 1)] == [[0], [1], [0, 2], [], [2], [0, 1]]


def test_classes_of_coco_are_held_out_of_real_images() -> None:
    data = config(root=str(COCO_MINI), unseen_list="dog,traffic light")
    plain, source = dataset.look(config(root=str(COCO_MINI))), dataset.look(data)
    assert [source.classes[label] for label in source.unseen] == ["traffic light", "dog"]
    assert plain.records is not None and source.records is not None
    shown = [r for r in plain.records[0] if set(r.labels) & set(source.unseen)]
    assert shown
    assert source.records[0] == [r for r in plain.records[0] if r not in shown]
    assert source.num_train == plain.num_train - len(shown)
    assert source.records[1] == plain.records[1]


def test_digits_are_held_out_when_they_are_composed(tmp_path: Path) -> None:
    scenes = {"train_images": 60, "val_images": 20, "side": 32}
    data = config(source="digits", digits=scenes, unseen_list="three,eight", word_vectors="digits")
    source = dataset.look(data)
    assert (source.unseen, source.num_train) == ((3, 8), 60)
    assert source.words is not None and source.words.names == digits.CLASSES
    prepared = dataset.prepare(data, source, tmp_path)
    assert prepared.words is source.words
    assert 0 < prepared.manifests[0].num_images < 60
    assert not {3, 8} & {label for _, labels in rows(prepared, 0) for label in labels}
    assert {3, 8} < {label for _, labels in rows(prepared, 1) for label in labels}


def test_shards_hold_out_classes_only_when_they_were_written_so(listed: DataConfig, tmp_path: Path) -> None:
    held_out = listed.model_copy(update={"unseen_list": "dog"})
    for name, data in (("plain", listed), ("held-out", held_out)):
        prepared = prepare(data, tmp_path / "cache")
        for folder, split in zip(prepared.folders, ("train", "val"), strict=True):
            shutil.copytree(folder, tmp_path / name / split)
    keys = {"source": "shards", "train_split": "train", "val_split": "val", "unseen_list": "dog"}
    with pytest.raises(DataError, match=r"those of train show dog\. Prepare them again from the original data"):
        dataset.look(config(root=str(tmp_path / "plain"), **keys))
    source = dataset.look(config(root=str(tmp_path / "held-out"), **keys))
    assert source.unseen == (2,)
    shards_of = config(root=str(tmp_path / "held-out"), **keys)
    assert dataset.prepare(shards_of, source, tmp_path).digest == prepare(held_out, tmp_path / "cache").digest


def test_word_vectors_are_read_under_the_root_for_every_class(listed: DataConfig, vectors: str) -> None:
    for path in (vectors, str(Path(str(listed.root)) / vectors)):
        source = dataset.look(listed.model_copy(update={"word_vectors": path, "unseen_list": "dog"}))
        assert source.words is not None
        assert source.words.names == ("cat", "traffic light", "dog")
        np.testing.assert_array_equal(source.words.vectors, [[1, 0, 2], [1.5, 1.5, 0], [1, 1, 1]])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"unseen_list": "dgo"}, "'dgo'; the nearest is 'dog'"),
        ({"unseen_list": "cat,traffic light,dog"}, "names 3 of 3"),
        ({"word_vectors": "missing.txt"}, "No such file"),
        ({"word_vectors": "digits"}, "must hold a vector for each class, but 3 of 3"),
    ],
)
def test_mistakes_about_classes_are_found_before_anything_starts(
    listed: DataConfig, keys: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        dataset.look(listed.model_copy(update=keys))


def test_the_digest_covers_words_and_unseen_classes_and_is_as_before_without(
    listed: DataConfig, vectors: str, tmp_path: Path
) -> None:
    plain = prepare(listed, tmp_path / "cache")
    manifests = json.dumps([manifest.digest for manifest in plain.manifests])
    assert plain.digest == hashlib.sha256(manifests.encode()).hexdigest()[:12]
    with_words = prepare(listed.model_copy(update={"word_vectors": vectors}), tmp_path / "cache")
    assert with_words.manifests == plain.manifests
    assert with_words.words is not None
    other = replace(with_words.words, vectors=with_words.words.vectors * 2)
    held_out = [replace(plain, unseen=labels) for labels in ((1,), (2,))]
    digests = {p.digest for p in (plain, with_words, replace(with_words, words=other), *held_out)}
    assert len(digests) == 5
    assert words.digest(other) != words.digest(with_words.words)


def test_shards_of_coco_lie_where_they_lay_before(tmp_path: Path) -> None:
    """Their folder is named by the annotations, the images and the settings: other names would write them anew."""
    root = digits.compose(tmp_path / "scenes", train_images=8, val_images=4, side=32, seed=0)
    data = config(root=str(root), train_split="train", val_split="val")
    prepared = prepare(data, tmp_path / "cache")
    for folder, split in zip(prepared.folders, ("train", "val"), strict=True):
        annotations = root / "annotations" / f"instances_{split}.json"
        records, _ = coco.read(annotations, root / split)
        images = [(r.image_id, Path(r.path).name, os.path.getsize(r.path)) for r in records]
        key = {
            "annotations": hashlib.sha256(annotations.read_bytes()).hexdigest(),
            "images": hashlib.sha256(json.dumps(images).encode()).hexdigest()[:12],
            "keep_unlabelled": True,
            "rows_per_group": 128,
        }
        named = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
        assert folder == tmp_path / "cache" / f"{split}-{named}"
        assert shards.read_manifest(folder).source.items() >= key.items()


def test_folders_are_written_in_an_order_that_mixes_the_classes(tmp_path: Path) -> None:
    # 40 folders of 16 images: in their own order, a batch of 64 would show 4 classes.
    for split in ("train", "val"):
        for label in range(40):
            folder = tmp_path / "data" / split / f"n{label:03d}"
            folder.mkdir(parents=True)
            for number in range(16):
                Image.new("RGB", (8, 8), (label, number, 0)).save(folder / f"{number}.png")
    config = DataConfig(source="imagenet", root=str(tmp_path / "data"), train_split="train", val_split="val")
    prepared = dataset.prepare(config, dataset.look(config), tmp_path / "cache")
    tables = [pq.read_table(path) for path in sorted(prepared.folders[0].glob("*.parquet"))]
    written = [row["labels"][0] for table in tables for row in table.to_pylist()]
    assert sorted(written) == [label for label in range(40) for _ in range(16)]
    assert min(len(set(written[start : start + 64])) for start in range(0, 640, 64)) > 20
    again = dataset.prepare(config, dataset.look(config), tmp_path / "elsewhere")
    assert again.digest == prepared.digest
