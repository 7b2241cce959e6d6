"""An image classifier: a backbone and a head that turns its feature map into one logit per class.

The heads are ML-Decoder (arXiv 2111.12933) and what it replaces and is compared with, global average pooling
and one linear layer. Shape letters: B images, C channels, H x W pixels or positions, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.backbones import Backbone
from trainables.config import ModelConfig
from trainables.ml_decoder import MLDecoder


class Classifier(nn.Module):
    """Normalised images (B, 3, H, W) -> logits (B, K), float32 under any autocast."""

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, K)."""
        return self.head(self.backbone(images))


class GlobalAveragePooling(nn.Module):
    """Feature map (B, C, H, W) -> logits (B, K): mean over positions, then one linear layer."""

    def __init__(self, num_classes: int, *, in_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, num_classes)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K), in float32 at least: bfloat16 logits tie, and the metric ranks them."""
        wide = torch.promote_types(features_BCHW.dtype, torch.float32)
        with torch.autocast(features_BCHW.device.type, enabled=False):
            pooled_BC = features_BCHW.to(wide).mean(dim=(2, 3))
            return functional.linear(pooled_BC, self.linear.weight.to(wide), self.linear.bias.to(wide))


def build(model_config: ModelConfig, image_size: int | None = None) -> Classifier:
    """The configured classifier, with `.backbone` and `.head`, on the default device and in training mode.

    `image_size`, in pixels, is needed by backbones built for one size; None is the backbone's own.
    Raises ValueError if num_classes is not known, in_features is not the backbone's, or as `Backbone` and
    `MLDecoder` do; RuntimeError if pretrained weights cannot be had.
    """
    if model_config.num_classes is None:
        raise ValueError(
            "num_classes must be known to build a model, but got num_classes=None. "
            "Take it from the data, or set model.num_classes."
        )
    backbone = Backbone(
        model_config.backbone,
        pretrained=model_config.pretrained,
        feature_stride=model_config.feature_stride,
        image_size=image_size,
    )
    if model_config.in_features not in (None, backbone.in_features):
        raise ValueError(
            f"in_features must be the backbone's channels, but got in_features={model_config.in_features}, "
            f"{model_config.backbone!r} has {backbone.in_features}. Leave model.in_features out to infer it."
        )
    return Classifier(backbone, _build_head(model_config, model_config.num_classes, backbone.in_features))


def _build_head(model_config: ModelConfig, num_classes: int, in_features: int) -> nn.Module:
    if model_config.head == "gap":
        return GlobalAveragePooling(num_classes, in_features=in_features)
    return MLDecoder(
        num_classes,
        in_features=in_features,
        query_num=model_config.query_num,
        embed_dim=model_config.embed_dim,
        num_heads=model_config.num_heads,
        feedforward_dim=model_config.feedforward_dim,
        dropout=model_config.dropout,
    )
