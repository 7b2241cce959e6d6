"""Files that do not fit: refused by name, with the model as it was."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.weights_helpers import NEW_HEAD, assert_same, in_their_names, saved, small_model
from trainables import convert
from trainables.initial_weights import load
from trainables.weight_files import Tensors, WeightsError

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _heads(name: str) -> Tensors:
    if name == "no head":
        return {}
    if name == "another kind":
        return small_model("gap").state_dict()
    if name == "another number of classes":
        return small_model(num_classes=11).state_dict()
    return small_model(query_num=5).state_dict()


@pytest.mark.parametrize("source", ["ours", "timm", "reference"])
@pytest.mark.parametrize(
    "change, complaint",
    [
        ("no head", r"tensors missing: "),
        ("another kind", r"tensors missing: .*2 tensors without a place in the model: linear\."),
        ("another number of classes", r"group_bias \(11,\) instead of \(10,\)"),
        ("another number of queries", r"queries \(5, 32\) instead of \(10, 32\)"),
    ],
)
def test_a_head_that_does_not_fit_is_refused_by_name(tmp_path: Path, source: str, change: str, complaint: str) -> None:
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    ours = {name: tensor for name, tensor in before.items() if not name.startswith("head.")}
    ours |= {name: tensor for name, tensor in _heads(change).items() if name.startswith("head.")}
    with pytest.raises(WeightsError, match=complaint) as refusal:
        load(model, saved(in_their_names(ours, source), tmp_path / "model.safetensors"))
    refusal.match(NEW_HEAD)
    assert_same(model, before)


def _damaged(tensors: Tensors, damage: str) -> Tensors:
    name = "layer2.0.conv1.weight"
    if damage == "missing":
        return {n: t for n, t in tensors.items() if not n.endswith(name)}
    if damage == "unknown":
        return tensors | {next(n for n in tensors if n.endswith(name)).replace("conv1", "conv9"): torch.zeros(2)}
    if damage == "shape":
        return {n: torch.zeros(2, 2) if n.endswith(name) else t for n, t in tensors.items()}
    return {n: t.long() if n.endswith(name) else t for n, t in tensors.items()}


@pytest.mark.parametrize("part", ["all", "backbone"])
@pytest.mark.parametrize("source", ["ours", "timm", "reference"])
@pytest.mark.parametrize(
    "damage, complaint",
    [
        ("missing", r"1 tensors missing: layer2\.0\.conv1\.weight \("),
        ("unknown", r"1 tensors without a place in the model: layer2\.0\.conv9\.weight \(2,\)"),
        ("shape", r"layer2\.0\.conv1\.weight \(2, 2\) instead of \("),
        ("integers", r"1 tensors of another shape or type: layer2\.0\.conv1\.weight torch\.int64"),
    ],
)
def test_a_backbone_that_does_not_fit_is_refused_by_name(
    tmp_path: Path, source: str, part: Any, damage: str, complaint: str
) -> None:
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    theirs = _damaged(in_their_names(before, source), damage)
    with pytest.raises(WeightsError, match=complaint):
        load(model, saved(theirs, tmp_path / "model.safetensors"), part)
    assert_same(model, before)


@pytest.mark.parametrize("part", ["all", "backbone"])
def test_a_tensor_beside_backbone_and_head_is_refused_by_name(tmp_path: Path, part: Any) -> None:
    model = small_model()
    path = saved({**model.state_dict(), "neck.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"1 tensors without a place in the model: neck\.weight \(2,\)"):
        load(model, path, part)


def test_files_of_another_thing_are_refused(tmp_path: Path) -> None:
    model = small_model()
    head = {name: tensor.clone() for name, tensor in model.head.state_dict().items()}
    for tensors in (head, convert.to_timm(head), small_model(backbone="test_vit").state_dict(), {"w": torch.zeros(1)}):
        with pytest.raises(WeightsError, match=r"The backbone in .* tensors missing: "):
            load(model, saved(tensors, tmp_path / "model.safetensors"))


def test_a_paddle_head_of_other_classes_is_refused(tmp_path: Path) -> None:
    original = small_model(backbone="resnet26d", num_classes=81, query_num=27)
    arrays = {name: tensor.numpy() for name, tensor in convert.to_paddle(original.state_dict()).items()}
    (tmp_path / "best_model.pdparams").write_bytes(pickle.dumps(arrays))
    cases: Any = (
        ({"num_classes": 84, "query_num": 28}, "a slot for each of 84 classes, has 81"),
        ({"num_classes": 54, "query_num": 27}, r"must be \(27, 32, 2\), but is \(27, 32, 3\)"),
        ({"num_classes": 80, "query_num": 20}, r"queries \(27, 32\) instead of \(20, 32\)"),
    )
    for changes, complaint in cases:
        with pytest.raises(WeightsError, match=complaint) as refusal:
            load(small_model(backbone="resnet26d", **changes), str(tmp_path / "best_model.pdparams"))
        refusal.match(NEW_HEAD)
