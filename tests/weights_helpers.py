"""What the tests of foreign weights share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from trainables import convert
from trainables.classifier import Classifier, build
from trainables.config import ModelConfig
from trainables.weight_files import Tensors

NEW_HEAD = r"Set model\.weights_part=backbone to start a new head\."


def shaken(model: Any) -> Any:
    """With biases, norms and statistics away from 0 and 1, so that none can be forgotten or exchanged."""
    for tensor in model.state_dict().values():
        if tensor.ndim == 1:
            tensor.add_(torch.rand_like(tensor))
    return model.eval()


def small_model(head: str = "ml_decoder", image_size: int | None = None, **changes: Any) -> Classifier:
    """A small classifier of 10 classes, shaken."""
    small = {"backbone": "test_resnet", "num_classes": 10, "embed_dim": 32, "feedforward_dim": 64}
    return shaken(build(ModelConfig.model_validate({**small, "head": head, **changes}), image_size))


def saved(tensors: Tensors, path: Path) -> str:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return str(path)


def in_their_names(tensors: Tensors, source: str) -> Tensors:
    """Our tensors as a file of `ours`, `timm` or `reference` holds them."""
    if source == "ours":
        return tensors
    return convert.to_timm(tensors) if source == "timm" else convert.to_reference(tensors)


def assert_same(model: nn.Module, expected: Tensors) -> None:
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
