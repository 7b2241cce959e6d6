"""PaddleClas's weights: converted, they must compute what PaddleClas computes."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import nn

from tests.weights_helpers import shaken
from trainables import convert
from trainables.ml_decoder import MLDecoder
from trainables.weight_files import Tensors, WeightsError

torch.set_num_threads(1)

CASES = [(80, 80), (80, 20), (81, 20), (80, 60), (10, 1), (1, 1)]
WIDTH, EMBED_DIM, FEEDFORWARD_DIM = 24, 16, 32


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _our_head(state_dict: Tensors, num_classes: int, query_num: int) -> MLDecoder:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dead queries are among the cases
        head = MLDecoder(
            num_classes,
            in_features=WIDTH,
            query_num=query_num,
            embed_dim=EMBED_DIM,
            feedforward_dim=FEEDFORWARD_DIM,
        )
    head.load_state_dict(state_dict)
    return head.eval()


def _paddle_head(num_classes: int, query_num: int) -> dict[str, NDArray[np.float32]]:
    """A PaddleClas head's arrays, random: linear weights (in, out), one attention projection each for q, k, v."""
    rng = np.random.default_rng(0)
    d, f, slots = EMBED_DIM, FEEDFORWARD_DIM, query_num * -(-num_classes // query_num)
    layer = "decoder.layers.0."
    shapes: dict[str, tuple[int, ...]] = {
        "input_proj.weight": (d, WIDTH, 1, 1),
        "input_proj.bias": (d,),
        "query_pos_embed.weight": (query_num, d),
        **{f"{layer}cross_attn.{name}_proj.weight": (d, d) for name in ("q", "k", "v", "out")},
        **{f"{layer}cross_attn.{name}_proj.bias": (d,) for name in ("q", "k", "v", "out")},
        **{f"{layer}norm{i}.{kind}": (d,) for i in (1, 2, 3) for kind in ("weight", "bias")},
        f"{layer}linear1.weight": (d, f),
        f"{layer}linear1.bias": (f,),
        f"{layer}linear2.weight": (f, d),
        f"{layer}linear2.bias": (d,),
        "group_conv.weight": (slots, d, 1, 1),
        "group_conv.bias": (slots,),
    }
    return {name: rng.normal(0.3, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def _paddle_logits(w: dict[str, NDArray[Any]], image: NDArray[Any], num_classes: int) -> NDArray[Any]:
    """PaddleClas's forward pass in evaluation mode, of one image (C, H, W), in float64."""
    w = {name.removeprefix("decoder.layers.0."): array.astype(np.float64) for name, array in w.items()}

    def linear(x: NDArray[Any], name: str) -> NDArray[Any]:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def norm(x: NDArray[Any], name: str) -> NDArray[Any]:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    conv = w["input_proj.weight"][:, :, 0, 0]
    memory = np.maximum(np.einsum("dc,chw->hwd", conv, image).reshape(-1, EMBED_DIM) + w["input_proj.bias"], 0)
    target = norm(2 * w["query_pos_embed.weight"], "norm1")
    q, k, v = (
        linear(target, "cross_attn.q_proj"),
        linear(memory, "cross_attn.k_proj"),
        linear(memory, "cross_attn.v_proj"),
    )
    attended = np.zeros_like(target)
    for part in np.split(np.arange(EMBED_DIM), 8):  # heads
        weights = np.exp(q[:, part] @ k[:, part].T / np.sqrt(len(part)))
        attended[:, part] = (weights / weights.sum(1, keepdims=True)) @ v[:, part]
    target = norm(target + linear(attended, "cross_attn.out_proj"), "norm2")
    target = norm(target + linear(np.maximum(linear(target, "linear1"), 0), "linear2"), "norm3")
    group = len(w["group_conv.bias"]) // len(target)  # a convolution in as many groups as queries
    slots = [target[slot // group] @ row[:, 0, 0] for slot, row in enumerate(w["group_conv.weight"])]
    return (np.array(slots) + w["group_conv.bias"])[:num_classes]


@pytest.mark.parametrize("num_classes, query_num", CASES)
def test_heads_of_paddleclas_give_the_same_logits(num_classes: int, query_num: int) -> None:
    theirs = _paddle_head(num_classes, query_num)
    state_dict = {name: torch.from_numpy(array) for name, array in theirs.items()}
    head = _our_head(convert.from_paddle(state_dict, num_classes=num_classes), num_classes, query_num)
    image = torch.randn(WIDTH, 3, 2)
    expected = torch.from_numpy(_paddle_logits(theirs, image.numpy(), num_classes))
    torch.testing.assert_close(head(image[None])[0].double(), expected, atol=1e-5, rtol=1e-5)


def test_a_paddle_head_without_a_number_of_classes_has_one_for_every_slot() -> None:
    state_dict = {name: torch.from_numpy(array) for name, array in _paddle_head(81, 20).items()}
    assert convert.from_paddle(state_dict)["group_bias"].shape == (100,)
    for wrong in (80, 101):  # four classes a query; a class without a slot
        with pytest.raises(WeightsError, match="must"):
            convert.from_paddle(state_dict, num_classes=wrong)


def _places_in_paddle(model: Any) -> dict[str, nn.Module]:
    """PaddleClas's module names of timm's modules, found by walking the network, not by timm's names."""
    stem = list(model.conv1) if isinstance(model.conv1, nn.Sequential) else [model.conv1]
    stem = [module for module in (*stem, model.bn1) if list(module.parameters())]
    places = {f"stem.{i // 2}.{'conv' if i % 2 == 0 else 'bn'}": module for i, module in enumerate(stem)}
    blocks = [block for stage in (model.layer1, model.layer2, model.layer3, model.layer4) for block in stage]
    for n, block in enumerate(blocks):
        own = [m for child, m in block.named_children() if child != "downsample" and list(m.parameters())]
        for i, module in enumerate(own):
            places[f"blocks.{n}.conv{i // 2}.{'conv' if i % 2 == 0 else 'bn'}"] = module
        if block.downsample is not None:
            conv, norm = (module for module in block.downsample if list(module.parameters()))
            places |= {f"blocks.{n}.short.conv": conv, f"blocks.{n}.short.bn": norm}
    return places


def _timms_by_paddles_name(model: Any) -> dict[str, str]:
    timms = {module: name for name, module in model.named_modules()}
    names = {"fc.weight": "fc.weight", "fc.bias": "fc.bias"}
    for place, module in _places_in_paddle(model).items():
        names |= {f"{place}.{kind}": f"{timms[module]}.{kind}" for kind, _ in module.named_parameters()}
        if isinstance(module, nn.BatchNorm2d):
            statistics = {"_mean": "running_mean", "_variance": "running_var"}
            names |= {f"{place}.{theirs}": f"{timms[module]}.{kind}" for theirs, kind in statistics.items()}
    return names


def _in_paddles_names(model: nn.Module) -> Tensors:
    tensors = model.state_dict()
    theirs = {theirs: tensors[name] for theirs, name in _timms_by_paddles_name(model).items()}
    return theirs | {"fc.weight": tensors["fc.weight"].T.contiguous()}


@pytest.mark.parametrize("name", ["resnet50", "resnet50d", "resnet101", "resnet101d", "resnet152", "resnet152d"])
def test_every_tensor_of_paddles_resnets_has_its_place_in_timms(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    theirs, names = _in_paddles_names(model), _timms_by_paddles_name(model)
    assert len(set(names.values())) == len(names)
    assert set(names.values()) == {n for n in model.state_dict() if not n.endswith("num_batches_tracked")}
    if name == "resnet50d":
        assert len(theirs) == 277
    ours = convert.from_paddle(theirs)
    assert len(ours) == len(theirs)
    back = convert.to_paddle(ours)
    assert back.keys() == theirs.keys()
    for paddles, timms in names.items():
        if timms.startswith("fc."):
            assert ours[f"head.linear{timms[2:]}"].shape == model.state_dict()[timms].shape
        else:
            assert ours[convert.TRUNK + timms] is theirs[paddles] is back[paddles]


def test_a_converted_resnet50_vd_computes_what_timms_resnet50d_does() -> None:
    model, other = (timm.create_model("resnet50d", num_classes=7) for _ in range(2))
    ours = convert.from_paddle(_in_paddles_names(shaken(model)))
    other.load_state_dict(other.state_dict() | convert.to_timm(ours))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(other.eval()(images), model(images))


@pytest.mark.parametrize("name", ["resnet18", "resnet34d", "lcnet_050"])
def test_other_backbones_of_paddleclas_are_refused(name: str) -> None:
    body = {"stem.0.conv.weight": torch.zeros(1), "blocks.0.conv0.conv.weight": torch.zeros(1)}
    body |= {f"blocks.0.{module}.conv.weight": torch.zeros(1) for module in ("conv1", "short")}
    if name == "lcnet_050":
        body = {"conv1.conv.weight": torch.zeros(1), "blocks2.0.dw_conv.conv.weight": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"ResNet50, 101 or 152 .* none of that: "):
        convert.from_paddle(body)
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    with pytest.raises(WeightsError, match=r"ResNet50, 101 or 152 .* none of that: "):
        convert.to_paddle({convert.TRUNK + n: t for n, t in model.state_dict().items()})
