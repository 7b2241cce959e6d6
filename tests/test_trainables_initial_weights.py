"""Loading a model from files: all of what fits, nothing of what does not."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from tests.weights_helpers import NEW_HEAD, assert_same, in_their_names, saved, shaken, small_model
from trainables import convert
from trainables.classifier import build
from trainables.config import ModelConfig
from trainables.initial_weights import detect, load
from trainables.weight_files import Tensors, WeightsError

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _without_counters(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("head", ["ml_decoder", "gap"])
@pytest.mark.parametrize("source", ["ours", "timm", "reference"])
def test_a_file_of_the_same_model_gives_the_same_model(tmp_path: Path, source: str, head: str) -> None:
    original, model = small_model(head, query_num=3), small_model(head, query_num=3)
    theirs = in_their_names(original.state_dict(), source)
    assert detect(theirs) == (source if head == "ml_decoder" or source == "ours" else "timm")
    said = load(model, saved(theirs, tmp_path / "model.safetensors"))
    assert_same(model, original.state_dict())
    of_head = len(model.head.state_dict())
    assert f"Read {len(model.state_dict()) - of_head} tensors of the backbone and {of_head} of the head" in said


@pytest.mark.parametrize("source", ["ours", "timm", "reference"])
def test_the_backbone_alone_leaves_the_head_and_does_not_look_at_the_files(tmp_path: Path, source: str) -> None:
    original, model = small_model(query_num=3), small_model("gap", num_classes=4)
    head = copy.deepcopy(model.head.state_dict())
    theirs = in_their_names(original.state_dict(), source)
    odd = [name for name in theirs if name.endswith(("duplicate_pooling", "group_weight"))]
    theirs = theirs | {odd[0]: torch.zeros(1), f"{odd[0]}_of_another_kind": torch.zeros(1)}
    said = load(model, saved(theirs, tmp_path / "model.safetensors"), "backbone")
    assert_same(model.backbone, original.backbone.state_dict())
    assert_same(model.head, head)
    assert "and 0 of the head" in said


@pytest.mark.parametrize(
    "name",
    [
        "test_resnet",
        "test_efficientnet",
        "rexnet_100",
        pytest.param("swin_tiny_patch4_window7_224", marks=pytest.mark.slow),
    ],
)
def test_timms_classifier_on_the_mean_of_the_map_gives_timms_logits(tmp_path: Path, name: str) -> None:
    timms = shaken(timm.create_model(name, num_classes=10))
    model = small_model("gap", backbone=name).train()  # as it is built
    load(model, saved(timms.state_dict(), tmp_path / "model.safetensors"))
    images = torch.randn(2, 3, *timms.pretrained_cfg["input_size"][1:])
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(images), timms(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name, complaint",
    [
        ("test_vit", "in timm test_vit's reads something else"),  # the class token
        ("test_convnext", r"comes after head\.norm\.bias, head\.norm\.weight \(2 tensors\)"),
        ("lcnet_050", r"linear\.weight \(10, 1280\) instead of \(10, 256\)"),  # after another convolution
    ],
)
def test_timms_classifier_on_anything_else_is_refused_and_its_backbone_taken(
    tmp_path: Path, name: str, complaint: str
) -> None:
    """By shapes alone the first two would fit."""
    timms = shaken(timm.create_model(name, num_classes=10))
    path = saved(timms.state_dict(), tmp_path / "model.safetensors")
    model = small_model("gap", backbone=name)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(WeightsError, match=f"{complaint}.*{NEW_HEAD}"):
        load(model, path)
    assert_same(model, before)
    load(model, path, "backbone")
    assert_same(model.backbone.trunk, {n: timms.state_dict()[n] for n in model.backbone.trunk.state_dict()})


def _paddle_file(tensors: Tensors, path: Path) -> str:
    path.write_bytes(pickle.dumps({name: tensor.numpy() for name, tensor in tensors.items()}, protocol=4))
    return str(path)


@pytest.mark.parametrize("head, backbone, count", [("ml_decoder", "resnet50d", 275), ("gap", "resnet26d", 155)])
def test_a_paddle_file_gives_the_same_model_but_for_the_count_of_batches(
    tmp_path: Path, head: str, backbone: str, count: int
) -> None:
    changes: Any = {"backbone": backbone, "num_classes": 81, "query_num": 27}
    original, model = small_model(head, **changes), small_model(head, **changes)
    model.get_buffer("backbone.trunk.bn1.num_batches_tracked").fill_(7)
    theirs = convert.to_paddle(original.state_dict())
    assert detect(theirs) == "paddle"
    said = load(model, _paddle_file(theirs, tmp_path / "best_model.pdparams"))
    expected, found = _without_counters(original.state_dict()), _without_counters(model.state_dict())
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert model.get_buffer("backbone.trunk.bn1.num_batches_tracked") == 7
    assert said.startswith(f"Read {count} tensors of the backbone and ") and "PaddleClas" in said


@pytest.mark.slow
def test_the_authors_tresnet_loads(tmp_path: Path) -> None:
    """Renamed here by the inverse of what timm does; the conversion itself is tested name by name elsewhere."""
    original, model = (small_model(backbone="tresnet_m") for _ in range(2))
    theirs = convert.to_reference(original.state_dict(), classifier="head")
    for name in list(theirs):
        if name.startswith("body.conv1."):
            theirs[name.replace(".conv.", ".0.").replace(".bn.", ".1.")] = theirs.pop(name)
    assert "body.conv1.0.weight" in theirs and detect(theirs) == "reference"
    path = tmp_path / "tresnet_m_COCO_224.pth"
    torch.save({"model": theirs}, path)
    load(model, str(path))
    expected = original.state_dict()
    for name, tensor in model.state_dict().items():
        is_scale = name.endswith("bn.weight")
        assert torch.equal(tensor, expected[name].abs() + 1e-5 if is_scale else expected[name]), name


def test_position_embeddings_of_another_image_size_are_resampled_as_timm_does(tmp_path: Path) -> None:
    published = shaken(timm.create_model("test_vit", num_classes=5))
    path = saved(published.state_dict(), tmp_path / "model.safetensors")
    model = small_model(backbone="test_vit", image_size=96)
    with pytest.raises(WeightsError, match=r"head.linear|linear.weight .*" + NEW_HEAD):
        load(model, path)
    said = load(model, path, "backbone")
    assert "timm's conversion resampled pos_embed" in said
    oracle = timm.create_model("test_vit", num_classes=5, img_size=96)
    timm.models.load_checkpoint(oracle, path, filter_fn=checkpoint_filter_fn)
    assert oracle.pos_embed.shape != published.pos_embed.shape
    assert_same(model.backbone.trunk, {n: oracle.state_dict()[n] for n in model.backbone.trunk.state_dict()})


def test_a_deeper_file_loads_where_the_model_stops_earlier_but_its_head_does_not(tmp_path: Path) -> None:
    original = small_model()
    theirs = convert.to_timm(original.state_dict())
    path = saved(theirs, tmp_path / "model.safetensors")
    model = small_model(feature_stride=16)
    with pytest.raises(WeightsError, match=NEW_HEAD):
        load(model, path)
    said = load(model, path, "backbone")
    kept = model.backbone.trunk.state_dict()
    assert f"left {len(original.backbone.trunk.state_dict()) - len(kept)} aside" in said
    assert not any(name.startswith("layer4") for name in kept)
    assert_same(model.backbone.trunk, {name: theirs[name] for name in kept})


def test_loading_moves_no_random_number_and_keeps_the_mode(tmp_path: Path) -> None:
    model = small_model("gap").train()
    timms = timm.create_model("test_resnet", num_classes=10)
    path = saved(timms.state_dict(), tmp_path / "model.safetensors")
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load(model, path)
    assert torch.equal(torch.rand(4), expected)
    assert all(module.training for module in model.modules())


def test_half_precision_files_fill_a_float32_model(tmp_path: Path) -> None:
    original, model = small_model(), small_model()
    half = {n: t.half() if t.is_floating_point() else t for n, t in original.state_dict().items()}
    path = saved(half, tmp_path / "model.safetensors")
    load(model, path)
    assert_same(model, {n: t.float() if t.is_floating_point() else t for n, t in load_file(path).items()})


def test_a_word_decoder_reads_our_own_head_and_keeps_its_words(tmp_path: Path) -> None:
    config = ModelConfig(backbone="test_resnet", head="word_decoder", num_classes=4, embed_dim=32, feedforward_dim=64)
    trained = build(config, words=torch.randn(4, 6))
    words = torch.randn(7, 6)
    model = build(config.model_copy(update={"num_classes": 7}), words=words)
    load(model, saved(trained.state_dict(), tmp_path / "model.safetensors"))
    expected = {**trained.state_dict(), "head.words": nn.functional.normalize(words)}
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name])
