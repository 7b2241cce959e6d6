"""Operations that move the pixels of uint8 images, each image by its own argument; what else holds, see `image_ops`.

Only nearest is Pillow's to the bit everywhere. The others blend with the fill within two pixels of the image's
border, where Pillow cuts sharply. Shape letters: B images, C = 3 channels, H x W pixels, P = H * W, L one of them.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from trainables.image_ops import onto, to_uint8

FILL = 128
"""Grey level of what a move uncovers."""


def shear_x(images_BCHW: Tensor, shear_B: Tensor, interpolation: Literal["bilinear", "bicubic"]) -> Tensor:
    """`image.transform(size, AFFINE, (1, shear, 0, 0, 1, 0), interpolation, fillcolor=FILL)`.

    Rows move to the left by `shear` of their distance from the top, each as a whole: the same as interpolating in
    two dimensions, in a third of the time on a CPU.
    """
    height, width = images_BCHW.shape[-2:]
    framed = functional.pad(images_BCHW, (1, 1), value=FILL)  # what lies outside reads the frame
    shift_BH1 = shear_B[:, None, None] * (torch.arange(height)[:, None] + 0.5)
    first_BH1, share_BH1 = shift_BH1.floor(), shift_BH1 - shift_BH1.floor()
    column_BHL = onto(images_BCHW, first_BH1, torch.int64) + torch.arange(width + 3, device=images_BCHW.device)
    column_BCHL = column_BHL.clamp_(0, width + 1)[:, None].expand(-1, images_BCHW.shape[1], -1, -1)
    near_BCHL = framed.gather(3, column_BCHL).float()
    before, left, right, after = (near_BCHL[..., i : i + width] for i in range(4))
    share_B1H1 = onto(images_BCHW, share_BH1, torch.float32)[:, None]
    if interpolation == "bilinear":
        return to_uint8((right - left).mul_(share_B1H1).add_(left))
    # Pillow's cubic: slopes at both pixels are those between their neighbours, not halved (a = -1).
    fall, rise = before - left, right - after
    cubic = (fall + rise).mul_(-share_B1H1).add_(fall, alpha=2).add_(rise).mul_(share_B1H1).add_(right - before)
    return to_uint8(cubic.mul_(share_B1H1).add_(left))


def shear_y(images_BCHW: Tensor, shear_B: Tensor, interpolation: Literal["bilinear", "bicubic"]) -> Tensor:
    """`image.transform(size, AFFINE, (1, 0, 0, shear, 1, 0), interpolation, fillcolor=FILL)`: columns move up."""
    return shear_x(images_BCHW.mT.contiguous(), shear_B, interpolation).mT


def translate_x(images_BCHW: Tensor, share_B: Tensor, interpolation: Literal["nearest", "bilinear"]) -> Tensor:
    """`affine` with (1, 0, share * width, 0, 1, 0): to the left."""
    return affine(images_BCHW, _matrix(1, 0, share_B * images_BCHW.shape[-1], 0, 1, 0), interpolation)


def translate_y(images_BCHW: Tensor, share_B: Tensor, interpolation: Literal["nearest", "bilinear"]) -> Tensor:
    """`affine` with (1, 0, 0, 0, 1, share * height): up."""
    return affine(images_BCHW, _matrix(1, 0, 0, 0, 1, share_B * images_BCHW.shape[-2]), interpolation)


def rotate(images_BCHW: Tensor, degrees_B: Tensor, interpolation: Literal["nearest", "bilinear"]) -> Tensor:
    """`image.rotate(degrees, interpolation, fillcolor=FILL)`: counter-clockwise about the middle."""
    y, x = (side / 2 for side in images_BCHW.shape[-2:])
    cos_B, sin_B = degrees_B.deg2rad().cos(), degrees_B.deg2rad().sin()
    matrix_B23 = _matrix(cos_B, -sin_B, x - cos_B * x + sin_B * y, sin_B, cos_B, y - sin_B * x - cos_B * y)
    return affine(images_BCHW, matrix_B23, interpolation)


def affine(images_BCHW: Tensor, matrix_B23: Tensor, interpolation: Literal["nearest", "bilinear"]) -> Tensor:
    """`image.transform(size, AFFINE, matrix, interpolation, fillcolor=FILL)`: matrix @ (x, y, 1) comes to (x, y).

    Coordinates are pixels from the upper left corner, a pixel's middle at one half; the matrix is float64, on the
    CPU. Bilinear is within one level: rounded, where Pillow cuts off.
    """
    height, width = images_BCHW.shape[-2:]
    framed = functional.pad(images_BCHW, (1, 1, 1, 1), value=FILL)  # what lies outside reads the frame
    steps_B23 = matrix_B23.clone()
    steps_B23[..., 2] += matrix_B23[..., :2].sum(-1) / 2  # from the middle of the first pixel
    if interpolation == "nearest":
        # Pillow's 16 + 16 bits: what lies on an edge between two pixels falls on the same side as there.
        fixed_B23 = onto(images_BCHW, (steps_B23 * 65536 + 0.5).floor(), torch.int32)
        xy_B2HW = _sources(fixed_B23, height, width).bitwise_right_shift_(16)
        x_BHW, y_BHW = xy_B2HW[:, 0].clamp_(-1, width), xy_B2HW[:, 1].clamp_(-1, height)
        index_BP = y_BHW.add_(1).mul_(width + 2).add_(x_BHW).add_(1).flatten(1).long()
        index_BCP = index_BP[:, None].expand(-1, images_BCHW.shape[1], -1)
        return framed.flatten(2).gather(2, index_BCP).view_as(images_BCHW)
    unit_2 = 2 / torch.tensor([width + 2, height + 2], dtype=torch.float64)  # the framed image spans -1 to 1
    steps_B23 *= unit_2[:, None]
    steps_B23[..., 2] += unit_2 - 1
    grid_B2HW = _sources(onto(images_BCHW, steps_B23, torch.float32), height, width)
    return _sample(framed, grid_B2HW)


def crop(images_BCHW: Tensor, box_B22: Tensor) -> Tensor:
    """Each image's box, enlarged to the whole: torchvision's `resized_crop` to the image's own size, within one level.

    `box_B22` is [[top, bottom], [left, right]], of which bottom and right are excluded; int64, on the CPU.
    """
    places = (_inside(box_B22[:, i], size) for i, size in enumerate(images_BCHW.shape[-2:]))
    y_BH, x_BW = (onto(images_BCHW, places_BL, torch.float32) for places_BL in places)
    return _sample(images_BCHW, torch.stack(torch.broadcast_tensors(x_BW[:, None], y_BH[..., None]), dim=1))


def _sample(images_BCHW: Tensor, grid_B2HW: Tensor) -> Tensor:
    """Bilinear, at x and y that span -1 to 1; these lie apart in memory, which is faster to write and to read."""
    sampled = functional.grid_sample(
        images_BCHW.float(), grid_B2HW.permute(0, 2, 3, 1), padding_mode="border", align_corners=False
    )
    return to_uint8(sampled.round_())


def _inside(ends_B2: Tensor, size: int) -> Tensor:
    """(B, size): places across [first, end), half a pixel away from both ends, in -1 to 1 for [0, size)."""
    first_B1, end_B1 = ends_B2.double().split(1, dim=1)
    places_BL = first_B1 + (end_B1 - first_B1) * (torch.arange(size) + 0.5) / size
    return places_BL.clamp(first_B1 + 0.5, end_B1 - 0.5) * (2 / size) - 1


def _matrix(*entries: Tensor | float) -> Tensor:
    """(B, 2, 3) float64 of six numbers, row by row; each one number, or one an image."""
    entries_B = torch.broadcast_tensors(*(torch.as_tensor(entry, dtype=torch.float64) for entry in entries))
    return torch.stack(entries_B, dim=-1).unflatten(-1, (2, 3))


def _sources(steps_B23: Tensor, height: int, width: int) -> Tensor:
    """(B, 2, H, W): steps @ (x, y, 1) at each pixel, x and y counted from 0."""
    x_W, y_H = (torch.arange(side, dtype=steps_B23.dtype, device=steps_B23.device) for side in (width, height))
    across_B2W = steps_B23[..., 0, None] * x_W
    down_B2H = steps_B23[..., 1, None] * y_H + steps_B23[..., 2, None]
    return across_B2W[:, :, None] + down_B2H[..., None]
