"""Whole runs beside the default one: ImageNet folders with one label an image, and words as queries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from orchestrator import sweep, train
from orchestrator.execution import request
from orchestrator.execution.bundle import rebuild
from trainables import weight_files

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

SMALL = ["model.backbone=test_resnet", "model.feature_stride=16", "model.embed_dim=32", "model.num_heads=4"]


def results(root: Path) -> tuple[Path, list[dict[str, Any]], list[dict[str, Any]]]:
    """The only run folder under `root`, its leaderboard, and the epochs of its first trial."""
    [board] = root.glob("*/leaderboard.json")
    lines = (board.parent / "trials" / "0000" / "metrics.jsonl").read_text().splitlines()
    return board.parent, json.loads(board.read_text()), [json.loads(line) for line in lines]


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """Four classes of one colour each, in class folders; images of differing sizes."""
    generator = np.random.default_rng(0)
    for split, num in (("train", 24), ("val", 6)):
        for label in range(4):
            folder = tmp_path / "imagenet" / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            for number in range(num):
                pixels = generator.integers(0, 60, (40 + number, 60, 3), np.uint8)
                pixels[..., label % 3] += 90 if label < 3 else 0
                Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=95)
    return tmp_path / "imagenet"


def test_one_label_an_image_is_trained_and_its_weights_score_the_same_again(
    imagenet: Path, tmp_path: Path, ray_session: None, capfd: pytest.CaptureFixture[str]
) -> None:
    data = [f"data.root={imagenet}", "data.image_size=32", "model.num_classes=4", "model.query_num=2"]
    recipe = ["imagenet_resnet50_a2_ml_decoder", *data, *SMALL, "model.drop_path=0", "train.image_size=32"]
    schedule = ["train.epochs=4", "train.batch_size=8", "train.image_size_start=24", "data.train_side=40"]
    assert request.run(lambda: train.main([*recipe, *schedule, f"output.root={tmp_path / 'first'}"])) == 0
    folder, [row], epochs = results(tmp_path / "first")
    assert row["top1"] == max(epoch["top1"] for epoch in epochs) > 0.5
    assert [epoch["num_evaluated"] for epoch in epochs] == [24] * 4
    assert epochs[-1]["top5"] == 1.0 and "mAP" not in row
    assert "25.0 % top1 on 24 images, for scores that know nothing" in capfd.readouterr().out

    weights = tmp_path / "start.safetensors"
    (folder / "best" / "model.safetensors").rename(weights)
    again = [*recipe, f"model.weights={weights}", "train.epochs=0", "train.batch_size=8", "data.train_split=val"]
    assert request.run(lambda: train.main([*again, f"output.root={tmp_path / 'again'}"])) == 0
    folder, [scored], epochs = results(tmp_path / "again")
    weights.unlink()
    rebuild(folder / "best")  # without the file that it started from
    assert (scored["top1"], scored["epochs"], len(epochs)) == (row["top1"], 0, 1)


def test_several_labels_an_image_are_no_single_label_task(
    digits_shards: Path, tmp_path: Path, ray_session: None, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["digits", "data.source=shards", f"data.root={digits_shards}", "data.train_split=train"]
    words += ["data.val_split=val", "model.task=single_label", f"output.root={tmp_path}"]
    assert request.run(lambda: train.main(words)) == 2
    assert "needs exactly one class an image, but " in capfd.readouterr().err
    assert not list(tmp_path.glob("digits*"))


def test_a_sweep_asks_with_words_and_judges_unseen_classes(
    tmp_path: Path, ray_session: None, capfd: pytest.CaptureFixture[str]
) -> None:
    small = ["data.digits.train_images=200", "data.digits.val_images=80", "data.image_size=32", "data.digits.side=32"]
    words = [
        "digits_zero_shot",
        *small,
        *SMALL,
        "train.epochs=2",
        "sweep.trials=2",
        "sweep.pruner.name=none",
        f"output.root={tmp_path / 'runs'}",
    ]
    assert request.run(lambda: sweep.main(words)) == 0
    folder, rows, epochs = results(tmp_path / "runs")
    assert [row["state"] for row in rows] == ["complete"] * 2
    assert all({"mAP", "mAP_seen", "mAP_unseen"} <= epoch.keys() for epoch in epochs)
    # Eight classes are seen and two are not.
    assert epochs[0]["mAP"] == pytest.approx(0.8 * epochs[0]["mAP_seen"] + 0.2 * epochs[0]["mAP_unseen"])
    weights = weight_files.read(folder / "best" / "model.safetensors")
    assert weights["head.words"].shape == (10, 22)
    bundle = json.loads((folder / "best" / "bundle.json").read_text())
    assert bundle["model"]["head"] == "word_decoder" and len(bundle["classes"]) == 10
    assert bundle["unseen"] == ["three", "eight"]
    model = rebuild(folder / "best")
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert "% mAP on the 2 unseen classes" in capfd.readouterr().out
