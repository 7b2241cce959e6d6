"""RandAugment (arXiv 1909.13719) on batches: two operations in a row, which ones and how strong drawn for each image.

Two policies, as their sources have them:

- `ML_DECODER` is `RandAugment()` of the package randaugment 1.0.2, used by the ML-Decoder authors: one pair out
  of all pairs of 15 operations x 9 magnitudes, of which each happens with probability one half. PaddleClas's
  RandAugmentV4 is a copy whose small squares are black and twice as wide.
- `INCREASING` is timm 1.0.31's `rand-mM-mstdS-inc1`, as in the A2 recipe (arXiv 2110.00476): two out of 15
  operations, each with probability one half, magnitudes normal around M in tenths of the largest distortion.
  timm interpolates bilinearly or bicubically by chance; here it is bilinearly.

All chance is torch's default generator's, on the CPU. Shape letters: B images, C channels, H x W pixels, N of
the images of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from trainables import image_moves, image_ops
from trainables.image_ops import change_

NUM_LAYERS = 2
PROBABILITY = 0.5
CUTOUT_COLOR = (125, 122, 113)

Operation = Callable[[Tensor, Tensor], Tensor]
"""uint8 images (N, C, H, W) and their arguments (N, ...) -> uint8 (N, C, H, W)."""
Argument = Callable[[Tensor, Tensor], Tensor]
"""Level in [0, 1] and sign, -1 or 1, both (B,) float64 on the CPU -> the operation's arguments (B, ...)."""


@dataclass(frozen=True)
class Choice:
    """An operation, and what it makes of a level."""

    operation: Operation
    argument: Argument


Policy = Mapping[str, Choice]
"""Operations that are equally likely, by name."""


@dataclass(frozen=True)
class Drawn:
    """One layer of a policy, as drawn for each image; on the CPU."""

    operation_B: Tensor
    """Position in the policy; -1: the image stays as it is."""
    arguments: tuple[Tensor, ...]
    """Of each operation of the policy, (B, ...): for all images, also those that drew another."""


def ml_decoder_(images_BCHW: Tensor) -> None:
    """Distort uint8 images in place, as in the ML-Decoder recipe."""
    num = len(images_BCHW)
    for _ in range(NUM_LAYERS):
        apply_(images_BCHW, ML_DECODER, draw(ML_DECODER, torch.randint(1, 10, (num,)).double() / 9))


def increasing_(images_BCHW: Tensor, magnitude: float, magnitude_std: float) -> None:
    """Distort uint8 images in place, as timm's rand-m{magnitude}-mstd{magnitude_std}-inc1."""
    for _ in range(NUM_LAYERS):
        level_B = torch.normal(magnitude, magnitude_std, (len(images_BCHW),), dtype=torch.float64).clamp(0, 10) / 10
        apply_(images_BCHW, INCREASING, draw(INCREASING, level_B))


def draw(policy: Policy, level_B: Tensor) -> Drawn:
    """For each image an operation, or none, at its level (float64)."""
    num = len(level_B)
    operation_B = torch.where(torch.rand(num) < PROBABILITY, torch.randint(len(policy), (num,)), -1)
    sign_B = torch.randint(2, (num,)).double() * 2 - 1
    return Drawn(operation_B, tuple(choice.argument(level_B, sign_B) for choice in policy.values()))


def apply_(images_BCHW: Tensor, policy: Policy, drawn: Drawn) -> None:
    """Distort the images in place, as drawn: each operation once, on all images that drew it."""
    for position, choice in enumerate(policy.values()):
        rows_N = (drawn.operation_B == position).nonzero()[:, 0]
        change_(images_BCHW, rows_N, partial(_operate, choice.operation, drawn.arguments[position]))


def _operate(operation: Operation, argument_B: Tensor, images_NCHW: Tensor, rows_N: Tensor) -> Tensor:
    return operation(images_NCHW, argument_B[rows_N])


def _small_cutout(images_NCHW: Tensor, square_N3: Tensor) -> Tensor:
    """A square: side in pixels, of which an odd one is not used, and the place of its middle in [0, 1) x [0, 1)."""
    half_N1 = (square_N3[:, :1] // 2).long()
    middle_N2 = (square_N3[:, 1:] * torch.tensor(images_NCHW.shape[-2:])).long()
    box_N22 = torch.stack((middle_N2 - half_N1, middle_N2 + half_N1), dim=-1)
    return image_ops.paint(images_NCHW, box_N22, torch.tensor(CUTOUT_COLOR).expand(len(half_N1), -1))


def _square(level_B: Tensor, sign_B: Tensor) -> Tensor:
    return torch.column_stack(((20 * level_B).round(), torch.rand(len(level_B), 2, dtype=torch.float64)))


def _signed(largest: float) -> Argument:
    return lambda level_B, sign_B: largest * level_B * sign_B


def _no_argument(level_B: Tensor, sign_B: Tensor) -> Tensor:
    return level_B


def _blend_factor(level_B: Tensor, sign_B: Tensor) -> Tensor:
    """0.1 to 1.9; at 1 nothing changes."""
    return 1 + 0.9 * level_B * sign_B


_IN_BOTH: dict[str, Choice] = {
    "autocontrast": Choice(image_ops.autocontrast, _no_argument),
    "equalize": Choice(image_ops.equalize, _no_argument),
    "invert": Choice(image_ops.invert, _no_argument),
    "brightness": Choice(image_ops.brightness, _blend_factor),
    "color": Choice(image_ops.color, _blend_factor),
    "contrast": Choice(image_ops.contrast, _blend_factor),
    "sharpness": Choice(image_ops.sharpness, _blend_factor),
}

ML_DECODER: Policy = _IN_BOTH | {
    "posterize": Choice(image_ops.posterize, lambda level_B, _: (8 - 4 * level_B).round()),
    "solarize": Choice(image_ops.solarize, lambda level_B, _: 256 - 256 * level_B),
    "shear_x": Choice(partial(image_moves.shear_x, interpolation="bicubic"), _signed(0.3)),
    "shear_y": Choice(partial(image_moves.shear_y, interpolation="bicubic"), _signed(0.3)),
    "translate_x": Choice(partial(image_moves.translate_x, interpolation="nearest"), _signed(150 / 331)),
    "translate_y": Choice(partial(image_moves.translate_y, interpolation="nearest"), _signed(150 / 331)),
    # Counter-clockwise only, as there.
    "rotate": Choice(partial(image_moves.rotate, interpolation="nearest"), lambda level_B, _: 30 * level_B),
    "cutout": Choice(_small_cutout, _square),
}

INCREASING: Policy = _IN_BOTH | {
    "posterize": Choice(image_ops.posterize, lambda level_B, _: 4 - (4 * level_B).floor()),
    "solarize": Choice(image_ops.solarize, lambda level_B, _: 256 - (256 * level_B).floor()),
    "solarize_add": Choice(image_ops.solarize_add, lambda level_B, _: (110 * level_B).floor()),
    "shear_x": Choice(partial(image_moves.shear_x, interpolation="bilinear"), _signed(0.3)),
    "shear_y": Choice(partial(image_moves.shear_y, interpolation="bilinear"), _signed(0.3)),
    "translate_x": Choice(partial(image_moves.translate_x, interpolation="bilinear"), _signed(0.45)),
    "translate_y": Choice(partial(image_moves.translate_y, interpolation="bilinear"), _signed(0.45)),
    "rotate": Choice(partial(image_moves.rotate, interpolation="bilinear"), _signed(30.0)),
}
