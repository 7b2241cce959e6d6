"""A timm backbone as a feature extractor: its name -> spatial features (B, C, H, W), for any family.

timm's families end differently: NCHW maps (most CNNs), NHWC maps (Swin), tokens with or without prefix tokens
(ViT), lists (CoaT). How to read one, how wide its map is and which of its modules the map does not need
(pooling heads, convolutions after pooling, later stages) is found by one forward and backward pass on
PyTorch's meta device, which has shapes but no data. What receives no gradient there is removed, so that DDP
never waits for it.

Shape letters: B images, C channels, H x W positions.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn


class Readout(NamedTuple):
    """How one backbone gives its feature map, and what that map is."""

    stage: int | None
    """Index for timm's forward_intermediates; None: forward_features is the map already."""
    norm: bool = False
    """Apply the backbone's final norm to the stage."""
    channels_last: bool = False
    """forward_features gives (B, H, W, C)."""
    in_features: int = 0
    """C of the map: what a head on top takes as `in_features`."""
    unused: frozenset[str] = frozenset()
    """Names of the parameters that do not touch the map."""


class Backbone(nn.Module):
    """Images (B, 3, H, W) -> features (B, in_features, H / stride, W / stride).

    `name` is timm's, with or without a weights tag. `feature_stride` takes the deepest stage whose stride is
    at most this and drops the stages after it; None is the last stage. `image_size` in pixels is needed by
    backbones built for one size (ViT) when it differs from their own. `drop_path` is the rate of stochastic
    depth in the last block. All trainable parameters receive a gradient.

    Raises ValueError for an unknown name, a stride below every stage's, an image size that the backbone
    cannot take, a backbone without a feature map, stochastic depth or gradient checkpointing; RuntimeError when
    pretrained weights cannot be had.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = False,
        feature_stride: int | None = None,
        image_size: int | None = None,
        drop_path: float = 0.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        _check_name(name)
        self.readout = _probe(name, feature_stride, image_size)
        self.in_features = self.readout.in_features
        self.trunk = _create(name, pretrained, image_size, drop_path)
        _drop_unused(self.trunk, self.readout.unused)
        if gradient_checkpointing:
            _recompute_activations(name, self.trunk)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float -> (B, in_features, h, w) float."""
        return _read(self.trunk, images, self.readout)


def check_sizes(name: str, built_for: int, sizes: Iterable[int]) -> None:
    """Raise ValueError if `name`, built for images of one size in pixels, cannot take one of the others."""
    others = sorted(set(sizes) - {built_for})
    if others and _own_config(name).fixed_input_size:
        raise ValueError(
            f"{name!r} takes images of the one size that it is built for, but got {built_for} and {others[:5]}. "
            "Drop train.image_size and train.image_size_start, or set data.image_size."
        )


def _check_name(name: str) -> None:
    architecture, _, tag = name.partition(".")
    if architecture not in timm.list_models():
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        way_out = f"Nearest: {', '.join(near)}." if near else "timm.list_models() has them all."
        raise ValueError(f"backbone must be a timm model, but got {name!r}. {way_out}")
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        known = ", ".join(timm.list_pretrained(f"{architecture}.*")) or architecture
        raise ValueError(
            f"backbone must name weights of timm, but got tag {tag!r} of {architecture!r}. Known: {known}."
        ) from error


def _own_config(name: str) -> Any:
    """timm's record of the weights' input size and whether the architecture is tied to it."""
    return timm.get_pretrained_cfg(name)


def _create(name: str, pretrained: bool, image_size: int | None, drop_path: float = 0.0) -> nn.Module:
    config = _own_config(name)
    is_resized = image_size is not None and image_size != config.input_size[-1]
    options: dict[str, Any] = {"img_size": image_size} if is_resized and config.fixed_input_size else {}
    if drop_path > 0:
        options["drop_path_rate"] = drop_path
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise RuntimeError(
            f"pretrained weights of {name!r} must be in the Hugging Face cache or reachable, "
            f"but loading them failed: {error} "
            "Name a file that you have with model.weights=FILE (and model.pretrained=false), "
            "fill the cache (HF_HOME) where there is a network, or start without: model.pretrained=false."
        ) from error
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        raise ValueError(
            f"drop_path must be 0 for {name!r}, which has no stochastic depth. Drop model.drop_path."
        ) from error


def _recompute_activations(name: str, trunk: Any) -> None:
    try:
        trunk.set_grad_checkpointing(True)
    except (AssertionError, AttributeError) as error:
        raise ValueError(
            f"gradient_checkpointing must be false for {name!r}, which timm cannot run that way: {error!r}. "
            "Drop model.gradient_checkpointing."
        ) from error


@lru_cache(maxsize=64)
def _probe(name: str, feature_stride: int | None, image_size: int | None) -> Readout:
    """Find the readout on the meta device: a pure function, so a process does it once per argument."""
    size = image_size or _own_config(name).input_size[-1]
    images = torch.empty(1, 3, size, size, device="meta")
    try:
        with torch.device("meta"), torch.enable_grad():
            trunk = _create(name, False, image_size).eval()
            stage = None if feature_stride is None else _stage_at(name, trunk, feature_stride)
            readout = _last_map(trunk, images) if stage is None else Readout(stage=stage)
            features = _read(trunk, images, readout)
            features.sum().backward()
            parameters = trunk.named_parameters(remove_duplicate=False)
            unused = frozenset(path for path, parameter in parameters if parameter.grad is None)
            # A module may run without touching the map (CrossViT): one more read shows that none does here.
            _drop_unused(trunk, unused)
            _read(trunk, images, readout)
    except (AssertionError, AttributeError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"backbone must give a feature map (B, C, H, W), but {name!r} does not at image_size={size}, "
            f"feature_stride={feature_stride}: {error!r}. Change one of the three."
        ) from error
    return readout._replace(in_features=features.shape[1], unused=unused)


def _stage_at(name: str, trunk: Any, feature_stride: int) -> int | None:
    """The deepest stage with a stride of at most feature_stride, None for the last."""
    strides = [info["reduction"] for info in trunk.feature_info]
    stages = [stage for stage, stride in enumerate(strides) if stride <= feature_stride]
    if not stages:
        raise ValueError(
            f"feature_stride must reach the first stage's stride, but got feature_stride={feature_stride}, "
            f"{name!r} has strides {sorted(set(strides))}. Raise feature_stride or choose another backbone."
        )
    return stages[-1] if stages[-1] < len(strides) - 1 else None


def _last_map(trunk: Any, images: Tensor) -> Readout:
    """forward_features where it is a map: it includes EfficientNet's convolution after the last stage."""
    features = trunk.forward_features(images)
    if isinstance(features, Tensor) and features.ndim == 4:
        if features.shape[1] == trunk.num_features:
            return Readout(stage=None)
        if features.shape[3] == trunk.num_features:
            return Readout(stage=None, channels_last=True)
    readout = Readout(stage=len(trunk.feature_info) - 1, norm=True)
    try:
        _read(trunk, images, readout)
    except AssertionError:  # families whose final norm belongs to the pooling head (Hiera)
        return readout._replace(norm=False)
    return readout


def _read(trunk: Any, images: Tensor, readout: Readout) -> Tensor:
    if readout.stage is None:
        features = trunk.forward_features(images)
        return features.permute(0, 3, 1, 2) if readout.channels_last else features
    return trunk.forward_intermediates(
        images,
        indices=[readout.stage],
        norm=readout.norm,
        stop_early=True,
        output_fmt="NCHW",
        intermediates_only=True,
    )[-1]


def _drop_unused(module: nn.Module, unused: frozenset[str], prefix: str = "") -> None:
    """Replace modules without used parameters by the identity; freeze unused parameters beside used ones."""
    for name, child in list(module.named_children()):
        names = {f"{prefix}{name}.{n}" for n, _ in child.named_parameters(remove_duplicate=False)}
        if names and names <= unused:
            setattr(module, name, nn.Identity())
        elif names & unused:
            _drop_unused(child, unused, f"{prefix}{name}.")
    for name, parameter in module.named_parameters(recurse=False):
        if f"{prefix}{name}" in unused:
            parameter.requires_grad_(False)
