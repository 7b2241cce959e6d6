"""What a command refuses: a clear sentence, exit code 2, nothing started and nothing written."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from datasets import coco, digits
from orchestrator import sweep, train
from orchestrator.execution import request

ROOT = Path(__file__).parent.parent
HEAVY = {"ray", "torch", "torchvision", "timm", "sklearn"}
Refused = Callable[..., list[str]]


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: files with their bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def children() -> set[int]:
    """Processes that this one has started."""
    return {int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


@pytest.fixture
def refused(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Refused]:
    """Runs a command that must be refused, and returns its error lines."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    kept = dict(os.environ)

    def run(*words: str, main: Callable[[Sequence[str]], int] = sweep.main) -> list[str]:
        before, running = snapshot(tmp_path), children()
        connected = is_connected()
        argv = [*words, f"output.root={tmp_path / 'runs'}"]
        assert request.run(lambda: main(argv)) == request.WRONG_REQUEST == 2
        out, err = capfd.readouterr()
        assert out == ""
        lines = err.splitlines()
        assert [line for line in lines if line.startswith("error: ")], err
        assert "Traceback" not in err
        assert snapshot(tmp_path) == before
        assert not (tmp_path / "runs").exists()
        assert children() <= running
        assert is_connected() == connected
        return lines

    yield run
    os.environ.clear()
    os.environ.update(kept)


def is_connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


@pytest.fixture
def coco_root(tmp_path: Path) -> Path:
    """Two splits in COCO's layout, right in every way; a test spoils one thing."""
    root = tmp_path / "coco"
    for split in ("train2017", "val2017"):
        (root / split).mkdir(parents=True)
        instances(root, split).parent.mkdir(exist_ok=True)
        tree = {
            "images": [{"id": number, "file_name": f"{number}.jpg"} for number in (1, 2)],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 3},
                {"id": 2, "image_id": 2, "category_id": 7},
            ],
            "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        }
        instances(root, split).write_text(json.dumps(tree))
    return root


def instances(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}.json"


def change(path: Path, section: str, position: int, **values: Any) -> None:
    tree = json.loads(path.read_text())
    tree[section][position].update(values)
    path.write_text(json.dumps(tree))


def test_an_unknown_key_is_refused_with_the_nearest(refused: Refused) -> None:
    [line] = refused("digits", "optim.learning_rate=3e-4", "cluster.num_cpus=1")
    assert line.startswith("error: optim.learning_rate is not a key of an experiment. Nearest:")
    [line] = refused("digits", "lr=3e-4", main=train.main)
    assert "Nearest: optim.lr" in line


def test_an_unknown_experiment_is_refused_with_the_nearest_and_all(refused: Refused) -> None:
    [line] = refused("digit")
    assert "no experiment named 'digit'" in line and "Did you mean digits?" in line and "coco_mini" in line
    [line] = refused("nowhere/mine.yaml")
    assert "there is no file nowhere/mine.yaml" in line


def test_several_mistakes_are_printed_at_once(refused: Refused) -> None:
    lines = refused("digits", "optm.lr=1", "train.epochs=-1", "model.head=mldecoder", "model.backbone=resnet5", "oops=")
    assert len(lines) == 5 and all(line.startswith("error: ") for line in lines)
    said = "\n".join(lines)
    for part in ("optm.lr", "train.epochs >= 0", "model.head must be one of", "model.backbone=resnet5", "oops"):
        assert part in said


def test_mistakes_of_the_data_and_of_the_space_are_printed_together(refused: Refused, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("parameters:\n  optim.lrate: {float: [1e-4, 1e-2]}\n  model.backbone: {choice: [resnet5]}\n")
    said = "\n".join(refused("coco_mini", f"data.root={tmp_path / 'none'}", f"sweep.space={space}"))
    assert str(tmp_path / "none") in said
    assert "optim.lrate" in said and "optim.lr" in said.replace("optim.lrate", "")
    assert "model.backbone=resnet5" in said


def test_a_missing_annotation_file_is_refused_by_name(refused: Refused, coco_root: Path) -> None:
    instances(coco_root, "val2017").unlink()
    [line] = refused("coco_mini", f"data.root={coco_root}")
    assert str(instances(coco_root, "val2017")) in line and "No such file" in line


def test_a_data_set_without_a_folder_is_refused(refused: Refused, tmp_path: Path) -> None:
    assert "data.root" in refused("coco_mini")[0]
    assert str(tmp_path / "none") in refused("coco_mini", f"data.root={tmp_path / 'none'}")[0]


def test_a_truncated_annotation_file_is_refused_by_name(refused: Refused, coco_root: Path) -> None:
    path = instances(coco_root, "train2017")
    path.write_bytes(path.read_bytes()[:-20])
    [line] = refused("coco_mini", f"data.root={coco_root}")
    assert str(path) in line and "valid JSON" in line and "truncated" in line


@pytest.mark.parametrize("name", ["../outside.jpg", "/etc/passwd", "a/../../outside.jpg"])
def test_a_file_name_that_leaves_the_image_folder_is_refused(refused: Refused, coco_root: Path, name: str) -> None:
    change(instances(coco_root, "train2017"), "images", 1, file_name=name)
    said = "\n".join(refused("coco_mini", f"data.root={coco_root}"))
    assert "images[1]" in said and name in said


def test_a_link_out_of_the_image_folder_is_refused(refused: Refused, coco_root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (coco_root / "train2017" / "1.jpg").symlink_to(tmp_path / "secret.jpg")
    assert "images[0]" in "\n".join(refused("coco_mini", f"data.root={coco_root}"))


def test_a_category_that_does_not_exist_is_refused(refused: Refused, coco_root: Path) -> None:
    change(instances(coco_root, "val2017"), "annotations", 0, category_id=99)
    said = "\n".join(refused("coco_mini", f"data.root={coco_root}"))
    assert "annotations[0]" in said and "category_id 99 is not in 'categories'" in said


def test_splits_with_other_classes_are_refused(refused: Refused, coco_root: Path) -> None:
    change(instances(coco_root, "val2017"), "categories", 1, name="wolf")
    [line] = refused("coco_mini", f"data.root={coco_root}")
    assert "dog" in line and "wolf" in line


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "added", "manifest"])
def test_shards_that_do_not_match_their_manifest_are_refused(
    refused: Refused, digits_shards: Path, tmp_path: Path, damage: str
) -> None:
    root = tmp_path / "shards"
    shutil.copytree(digits_shards, root)
    shard = sorted((root / "train").glob("*.parquet"))[0]
    data, named = shard.read_bytes(), shard.name
    if damage == "truncated":
        shard.write_bytes(data[:-1])
    elif damage == "flipped":
        shard.write_bytes(data[:1000] + bytes([data[1000] ^ 1]) + data[1001:])
    elif damage == "missing":
        shard.unlink()
    elif damage == "added":
        named = "stray.parquet"
        shutil.copy(shard, shard.with_name(named))
    else:
        named = "manifest.json"
        (root / "train" / named).unlink()
    words = ["data.source=shards", f"data.root={root}", "data.train_split=train", "data.val_split=val"]
    [line] = refused("digits", *words)
    assert named in line and str(root / "train") in line


def test_more_queries_than_classes_are_refused_in_words_and_in_a_space(refused: Refused, tmp_path: Path) -> None:
    for main in (sweep.main, train.main):
        [line] = refused("digits", "model.query_num=11", main=main)
        assert "query_num=11" in line and "num_classes=10" in line and "1, 2, 3, 4, 5, 10" in line
    space = tmp_path / "space.yaml"
    space.write_text("parameters:\n  model.query_num: {query_nums: [5, 11]}\n")
    said = "\n".join(refused("digits", f"sweep.space={space}"))
    assert "model.query_num" in said and "11" in said


def test_an_unknown_backbone_is_refused_with_the_nearest_in_words_and_in_a_space(
    refused: Refused, tmp_path: Path
) -> None:
    [line] = refused("digits", "model.backbone=resnet5o")
    assert "model.backbone=resnet5o" in line and re.search(r"Nearest: .*resnet50", line)
    space = tmp_path / "space.yaml"
    space.write_text("parameters:\n  model.backbone: {choice: [lcnet_050, lcnet_55]}\n")
    [line] = refused("digits", f"sweep.space={space}")
    assert "model.backbone=lcnet_55" in line and re.search(r"Nearest: .*lcnet_0?50", line)


def test_a_trial_that_does_not_fit_is_refused_with_the_arithmetic(refused: Refused) -> None:
    for main in (sweep.main, train.main):
        words = ("cluster.workers=64", "cluster.num_cpus=2", "train.batch_size=128")
        [line] = refused("digits", *words, main=main)
        assert "a trial needs 64.01 CPUs (64 x 1 for training + 0.01 for watching its workers)" in line
        assert "the cluster has 2 CPUs" in line and "Lower cluster.workers" in line


def test_more_trials_at_a_time_than_fit_are_refused_with_the_arithmetic(refused: Refused) -> None:
    [line] = refused("digits", "sweep.max_concurrent=3", "cluster.num_cpus=2")
    assert "sweep.max_concurrent=3" in line and "a trial needs 1 CPUs" in line and "the cluster has 2 CPUs" in line
    assert "so 2 fit" in line and "Set sweep.max_concurrent=2 or less" in line
    streamed = ("data.feeding=streaming", "sweep.max_concurrent=2", "cluster.num_cpus=2")
    [line] = refused("digits", *streamed)
    assert "a trial needs 2 CPUs (1 x 1 for training + 1 for reading its stream)" in line and "so 1 fit" in line


def test_what_needs_gpus_is_refused_where_there_are_none(refused: Refused) -> None:
    [line] = refused("digits", "train.sync_batch_norm=true", "cluster.use_gpu=false")
    assert "train.sync_batch_norm needs GPUs" in line
    [line] = refused("digits", "cluster.use_gpu=true", "cluster.gpus_per_worker=99")
    assert "1 x 99 GPU" in line and "the cluster has" in line


def test_a_dry_run_prints_the_tree_and_imports_nothing_heavy(tmp_path: Path) -> None:
    for command in ("sweep", "train"):
        words = ["digits", "--dry-run", "optim.lr=3e-4", f"output.root={tmp_path / 'runs'}"]
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", f"orchestrator.{command}", *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert "name: digits" in done.stdout and "lr: 0.0003" in done.stdout and "nothing was written" in done.stdout
        imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
        assert "pydantic" in imported  # the list is one
        assert not imported & HEAVY
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_finds_the_same_mistakes(refused: Refused, tmp_path: Path) -> None:
    words = ("digits", "model.query_num=11", "sweep.space=digts")
    assert refused(*words, "--dry-run") == refused(*words)


@pytest.fixture
def spoiled(tmp_path: Path) -> Callable[[int], list[str]]:
    """Words for a data set of 120 train images, of which a number cannot be read."""

    def make(num_bad: int) -> list[str]:
        root = digits.compose(tmp_path / "scenes", train_images=120, val_images=40, side=32, seed=0)
        records, _ = coco.read(instances(root, "train"), root / "train")
        for record in records[7 : 7 + num_bad]:
            Path(record.path).write_bytes(Path(record.path).read_bytes()[:50])
        splits = ["data.train_split=train", "data.val_split=val", "data.image_size=32"]
        return ["digits", "data.source=coco", f"data.root={root}", *splits, f"output.root={tmp_path / 'runs'}"]

    return make


@pytest.mark.ray
def test_a_single_unreadable_image_is_skipped_counted_and_listed(
    spoiled: Callable[[int], list[str]], tmp_path: Path, ray_session: None, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*spoiled(1), "model.backbone=test_resnet", "train.epochs=1"]
    assert request.run(lambda: train.main(words)) == 0
    out = capfd.readouterr().out
    [folder] = (tmp_path / "runs").glob("digits-*")
    assert f"skipped 1 unreadable images, listed in {folder / 'bad_images.jsonl'}" in out.replace("\n", "")
    [listed] = [json.loads(line) for line in (folder / "bad_images.jsonl").read_text().splitlines()]
    records, _ = coco.read(instances(tmp_path / "scenes", "train"), tmp_path / "scenes" / "train")
    assert (listed["image_id"], listed["path"]) == (records[7].image_id, Path(records[7].path).name)
    assert listed["reason"]
    [row] = json.loads((folder / "leaderboard.json").read_text())
    assert row["state"] == "complete"


@pytest.mark.ray
def test_too_many_unreadable_images_are_refused(
    spoiled: Callable[[int], list[str]], tmp_path: Path, ray_session: None, capfd: pytest.CaptureFixture[str]
) -> None:
    words = spoiled(2)
    assert request.run(lambda: train.main(words)) == 2
    err = capfd.readouterr().err
    assert "At most 1.00% of the images may be unreadable, but 2 of 120 (1.67%) are" in err
    assert "max_bad_share" in err
    assert not list((tmp_path / "runs").glob("digits-*"))
    assert not list((tmp_path / "runs").glob("data/*/manifest.json"))
