"""An image classifier: a backbone and a head that turns its feature map into one logit per class.

The heads are ML-Decoder (arXiv 2111.12933) and what it replaces and is compared with, global average pooling
and one linear layer. Shape letters: B images, C channels, H x W pixels or positions, K classes.
"""

from __future__ import annotations

import logging
from typing import Any, Literal, Self

from torch import Tensor, nn
from torch.nn import functional

from trainables import initial_weights
from trainables.backbones import Backbone
from trainables.config import ModelConfig
from trainables.decoder import widened, without_autocast
from trainables.ml_decoder import MLDecoder
from trainables.word_decoder import WordDecoder

log = logging.getLogger(__name__)

Task = Literal["multi_label", "single_label"]


class Classifier(nn.Module):
    """Normalised images (B, 3, H, W) -> logits (B, K), float32 under any autocast.

    A frozen backbone has no trainable parameters and stays in evaluation mode.
    """

    def __init__(
        self, backbone: Backbone, head: nn.Module, *, task: Task = "multi_label", frozen: bool = False
    ) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False) if frozen else backbone
        self.head = head
        self.task = task
        self.frozen = frozen

    def forward(self, images: Tensor, words: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) -> (B, K); other words (K, W) than the data set's only for a `WordDecoder`."""
        features = self.backbone(images)
        return self.head(features) if words is None else self.head(features, words)

    def scores(self, logits: Tensor) -> Tensor:
        """Logits (B, K) -> probabilities: of each class by itself (sigmoid), or of one among all (softmax)."""
        return logits.sigmoid() if self.task == "multi_label" else logits.softmax(dim=-1)

    def train(self, mode: bool = True) -> Self:
        """As of any module, but for a frozen backbone, whose batch statistics stay."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self


class GlobalAveragePooling(nn.Module):
    """Feature map (B, C, H, W) -> logits (B, K): mean over positions, then one linear layer."""

    def __init__(self, num_classes: int, *, in_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, num_classes)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K), in float32 at least: bfloat16 logits tie, and the metric ranks them."""
        wide = widened(features_BCHW)
        with without_autocast(features_BCHW):
            pooled_BC = features_BCHW.to(wide).mean(dim=(2, 3))
            return functional.linear(pooled_BC, self.linear.weight.to(wide), self.linear.bias.to(wide))


def build(model_config: ModelConfig, image_size: int | None = None, words: Tensor | None = None) -> Classifier:
    """The configured classifier, with `.backbone` and `.head`, on the default device and in training mode.

    `image_size`, in pixels, is needed by backbones built for one size; None is the backbone's own. `words`
    (K, W) are the classes' word vectors, for the word decoder only.
    Raises ValueError if num_classes is not known, in_features is not the backbone's, the weights file does not
    fit, or as `Backbone` and the heads do; RuntimeError if pretrained weights cannot be had.
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
        drop_path=model_config.drop_path,
        gradient_checkpointing=model_config.gradient_checkpointing,
    )
    if model_config.in_features not in (None, backbone.in_features):
        raise ValueError(
            f"in_features must be the backbone's channels, but got in_features={model_config.in_features}, "
            f"{model_config.backbone!r} has {backbone.in_features}. Leave model.in_features out to infer it."
        )
    head = _build_head(model_config, model_config.num_classes, backbone.in_features, words)
    classifier = Classifier(backbone, head, task=model_config.task, frozen=model_config.freeze == "backbone")
    if model_config.weights is not None:
        log.info(initial_weights.load(classifier, model_config.weights, model_config.weights_part))
    return classifier


def _build_head(model_config: ModelConfig, num_classes: int, in_features: int, words: Tensor | None) -> nn.Module:
    if model_config.head == "gap":
        return GlobalAveragePooling(num_classes, in_features=in_features)
    size: dict[str, Any] = {
        "in_features": in_features,
        "embed_dim": model_config.embed_dim,
        "num_heads": model_config.num_heads,
        "feedforward_dim": model_config.feedforward_dim,
        "dropout": model_config.dropout,
    }
    if model_config.head == "ml_decoder":
        return MLDecoder(num_classes, query_num=model_config.query_num, **size)
    if words is None or len(words) != num_classes:
        raise ValueError(
            f"the word decoder needs a word vector for each of the {num_classes} classes, but got "
            f"{'none' if words is None else len(words)}. Set data.word_vectors."
        )
    return WordDecoder(words, **size)
