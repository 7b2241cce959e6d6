"""The whole model from its configuration."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trainables.classifier import GlobalAveragePooling, build
from trainables.config import ModelConfig
from trainables.ml_decoder import MLDecoder

torch.set_num_threads(1)


def _config(**changes: Any) -> ModelConfig:
    small = {"backbone": "lcnet_050", "num_classes": 10, "embed_dim": 32, "feedforward_dim": 64}
    return ModelConfig.model_validate({**small, **changes})


@pytest.mark.parametrize("head, kind", [("ml_decoder", MLDecoder), ("gap", GlobalAveragePooling)])
def test_images_become_one_logit_per_class(head: str, kind: type) -> None:
    model = build(_config(head=head), image_size=64)
    assert isinstance(model.head, kind)
    logits = model(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_head_gets_every_setting() -> None:
    changes = {"query_num": 5, "embed_dim": 48, "num_heads": 4, "feedforward_dim": 96, "dropout": 0.3}
    head = build(_config(**changes)).head
    assert isinstance(head, MLDecoder)
    assert head.queries.shape == (5, 48)
    assert (head.num_heads, head.linear1.out_features, head.dropout) == (4, 96, 0.3)


def test_the_backbone_gets_stride_and_image_size() -> None:
    model = build(_config(backbone="vit_tiny_patch16_224"), image_size=48)
    assert model(torch.randn(1, 3, 48, 48)).shape == (1, 10)
    assert build(_config(feature_stride=16)).backbone.in_features == 128


def test_pooling_is_a_mean_and_one_linear_layer() -> None:
    head, features = GlobalAveragePooling(7, in_features=4), torch.randn(2, 4, 3, 5)
    torch.testing.assert_close(head(features), head.linear(features.mean(dim=(2, 3))))


@pytest.mark.parametrize("head", ["ml_decoder", "gap"])
def test_logits_are_not_rounded_by_autocast(head: str) -> None:
    model, images = build(_config(head=head)).eval(), torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images)
    assert logits.dtype == torch.float32 and not torch.equal(logits, logits.bfloat16().float())


def test_in_features_is_checked() -> None:
    build(_config(in_features=256))
    with pytest.raises(ValueError, match="got in_features=2048, 'lcnet_050' has 256"):
        build(_config(in_features=2048))


def test_num_classes_must_be_known() -> None:
    with pytest.raises(ValueError, match="num_classes must be known"):
        build(_config(num_classes=None))
