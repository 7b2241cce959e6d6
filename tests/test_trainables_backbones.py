"""Every family of timm gives one spatial map, and nothing in it trains in vain."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import timm
import torch
from torch import nn

from trainables.backbones import Backbone, check_sizes
from trainables.classifier import build
from trainables.config import ModelConfig

torch.set_num_threads(1)

FAST = {  # name -> (image_size, channels, map side)
    "resnet18": (64, 512, 2),
    "regnety_002": (64, 368, 2),
    "efficientnet_b0": (64, 1280, 2),
    "mobilenetv3_small_050": (64, 288, 2),
    "lcnet_050": (64, 256, 2),
    "hgnetv2_b0": (64, 1024, 2),
    "convnext_atto": (64, 320, 2),
    "vit_tiny_patch16_224": (64, 192, 4),
    "swin_tiny_patch4_window7_224": (64, 768, 2),
    "mambaout_femto": (64, 288, 2),
}
SLOW = {
    "mobilevit_xxs": (64, 320, 2),
    "edgenext_xx_small": (64, 168, 2),
    "tresnet_m": (64, 2048, 2),
    "densenet121": (64, 1024, 2),
    "vgg11": (64, 512, 2),
    "inception_v3": (107, 2048, 2),
    "davit_tiny": (64, 768, 2),
    "swinv2_tiny_window8_256": (64, 768, 2),
    "beit_base_patch16_224": (64, 768, 4),
    "vit_small_patch14_dinov2": (56, 384, 4),
    "vit_small_patch16_dinov3": (64, 384, 4),
    "vit_base_patch16_siglip_224": (64, 768, 4),
    "deit3_small_patch16_224": (64, 384, 4),
    "cait_xxs24_224": (64, 192, 4),
    "coat_tiny": (64, 152, 2),
    "levit_128s": (64, 384, 1),
    "maxvit_pico_rw_256": (64, 256, 2),
    "hiera_tiny_224": (64, 768, 2),
    "repvgg_a0": (64, 1280, 2),
}


def _untrained(backbone: nn.Module) -> list[str]:
    trainable = [(name, p) for name, p in backbone.named_parameters() if p.requires_grad]
    assert trainable
    return [name for name, p in trainable if p.grad is None]


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_family_feeds_the_decoder_and_every_parameter_gets_a_gradient(name: str) -> None:
    image_size, channels, side = {**FAST, **SLOW}[name]
    config = ModelConfig(backbone=name, num_classes=7, query_num=4, embed_dim=32, num_heads=4, feedforward_dim=64)
    model = build(config, image_size=image_size)
    features = model.backbone(torch.randn(2, 3, image_size, image_size))
    assert features.shape == (2, channels, side, side)
    assert features.is_floating_point() and features.isfinite().all()
    assert model.backbone.in_features == channels
    logits = model.head(features)
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    assert _untrained(model) == []


def test_the_families_are_at_least_25() -> None:
    assert len({re.split(r"[_0-9]", name)[0] for name in (*FAST, *SLOW)}) >= 25


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "mambaout_femto"])
def test_a_map_is_what_timm_computes_at_each_place(name: str) -> None:
    backbone: Any = Backbone(name, image_size=64).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features, raw = backbone(images), backbone.trunk.forward_features(images)
    by_place = {
        "resnet18": lambda i, j: raw[0, :, i, j],
        "vit_tiny_patch16_224": lambda i, j: raw[0, 1 + 4 * i + j],  # behind the class token, row by row
        "mambaout_femto": lambda i, j: raw[0, i, j],
    }[name]
    for i in range(features.shape[2]):
        for j in range(features.shape[3]):
            torch.testing.assert_close(features[0, :, i, j], by_place(i, j))


@pytest.mark.parametrize(
    "name, feature_stride, channels, side",
    [
        ("resnet18", 4, 64, 16),
        ("resnet18", 8, 128, 8),
        ("resnet18", 16, 256, 4),
        ("resnet18", 32, 512, 2),
        ("efficientnet_b0", 16, 112, 4),
        ("efficientnet_b0", 32, 1280, 2),
        ("lcnet_050", 16, 128, 4),
        pytest.param("swin_tiny_patch4_window7_224", 8, 192, 8, marks=pytest.mark.slow),
        pytest.param("vit_tiny_patch16_224", 16, 192, 4, marks=pytest.mark.slow),
    ],
)
def test_a_stride_takes_the_deepest_stage_and_drops_the_rest(
    name: str, feature_stride: int, channels: int, side: int
) -> None:
    backbone = Backbone(name, feature_stride=feature_stride, image_size=64)
    features = backbone(torch.randn(2, 3, 64, 64))
    assert features.shape == (2, channels, side, side)
    features.sum().backward()
    assert _untrained(backbone) == []


def test_dropped_stages_hold_no_parameters() -> None:
    kept = Backbone("resnet18", feature_stride=8)
    assert not any(name.startswith(("trunk.layer3", "trunk.layer4")) for name in kept.state_dict())
    whole = timm.create_model("resnet18", num_classes=0).state_dict()
    assert {n for n in whole if not n.startswith(("layer3", "layer4"))} == {
        n.removeprefix("trunk.") for n in kept.state_dict()
    }


def test_the_construction_draws_only_the_models_own_random_numbers() -> None:
    # The layout of a backbone is found once per process: were that to draw, the second model would differ.
    states = []
    for _ in range(2):
        torch.manual_seed(0)
        Backbone("mobilenetv3_small_050", image_size=96)
        states.append(torch.get_rng_state())
    torch.manual_seed(0)
    timm.create_model("mobilenetv3_small_050", num_classes=0)
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], torch.get_rng_state())


def test_it_can_be_built_without_gradients_and_copied() -> None:
    with torch.no_grad():
        backbone = copy.deepcopy(Backbone("lcnet_050", image_size=48))
    assert all(p.requires_grad for p in backbone.parameters())
    assert backbone(torch.randn(2, 3, 48, 48)).shape == (2, 256, 2, 2)


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=re.escape("got 'resnet5O'. Nearest: resnet50")):
        Backbone("resnet5O")
    with pytest.raises(ValueError, match=r"tag 'a9_in1k' of 'resnet50'\. Known: .*resnet50\.a1_in1k"):
        Backbone("resnet50.a9_in1k")


def test_a_stride_below_the_first_stage_is_refused() -> None:
    with pytest.raises(ValueError, match=r"feature_stride=8, 'vit_tiny_patch16_224' has strides \[16\]"):
        Backbone("vit_tiny_patch16_224", feature_stride=8)


def test_an_image_size_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="'efficientformer_l1' does not at image_size=96"):
        Backbone("efficientformer_l1", image_size=96)


def test_missing_pretrained_weights_are_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: Any) -> torch.nn.Module:
        if pretrained:
            raise FileNotFoundError("no network.")
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        RuntimeError, match=r"weights of .lcnet_050. .* no network\. Name a file .* model\.weights=FILE"
    ):
        Backbone("lcnet_050", pretrained=True)


def test_a_backbone_of_one_size_refuses_others_before_it_is_built() -> None:
    check_sizes("resnet18", 224, [160, 224])
    check_sizes("vit_tiny_patch16_224", 160, [160, 160])
    with pytest.raises(ValueError, match=r"'vit_tiny_patch16_224' takes images of the one size .* got 224 and \[160\]"):
        check_sizes("vit_tiny_patch16_224", 224, [160, 224])
