"""The brief's words for our keys: `Arch.class_num` is `model.num_classes`, `use_ml_decoder` chooses the head.

The blocks `Arch` and `MLDecoder` of a PaddleClas configuration are accepted as they stand, as words and in
YAML files beside our own keys. `in_chans` there counts the channels of the feature map that enters the head
(2048 for ResNet50), not image channels; PaddleClas later renamed it `in_channels`.
"""

from __future__ import annotations

from typing import Any

ALIASES = {
    "model.use_ml_decoder": "model.head",
    "Arch.name": "model.backbone",
    "Arch.class_num": "model.num_classes",
    "Arch.pretrained": "model.pretrained",
    "Arch.use_ml_decoder": "model.head",
    "MLDecoder.class_num": "model.num_classes",
    "MLDecoder.query_num": "model.query_num",
    "MLDecoder.in_chans": "model.in_features",
    "MLDecoder.in_channels": "model.in_features",
}
"""Another spelling -> our key."""

_BACKBONES = {
    "ResNet50_vd": "resnet50d",
    "PPLCNet_x1_0": "lcnet_100",
    "PPHGNetV2_B0": "hgnetv2_b0",
    "PPHGNetV2_B4": "hgnetv2_b4",
    "PPHGNetV2_B6": "hgnetv2_b6",
}
_HEADS = {"true": "ml_decoder", "false": "gap"}


def translate(key: str, value: Any) -> tuple[str, Any]:
    """Our key and value for one of `ALIASES`; any other pair comes back as it is.

    Raises:
        ValueError: the value has no meaning for our key.
    """
    text = str(value)
    if ALIASES.get(key) == "model.head":
        if text.strip().lower() not in _HEADS:
            raise ValueError(f"{key} must be true (ml_decoder) or false (gap), but got {key}={text}.")
        value = _HEADS[text.strip().lower()]
    elif key == "Arch.name":
        value = _BACKBONES.get(text, text.lower())
    elif key == "Arch.pretrained" and ("/" in text or text.endswith("best_model")):
        # PaddleClas loads such a path into the plain backbone, before the head exists, and says nothing.
        raise ValueError(
            f"Arch.pretrained must be true or false (timm's published weights), but got the path {text}. "
            "Give trained weights to evaluate, predict or export as their argument."
        )
    return ALIASES.get(key, key), value
