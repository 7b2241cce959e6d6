"""Operations on batches of uint8 images, each image with its own argument, as Pillow does them one at a time.

Each returns a new batch and names the Pillow call that it equals: to the bit, where nothing else is said.
Arguments are (B,) float64 on the CPU, one number an image; no operation makes the CPU wait for a GPU.

Shape letters: B images, C = 3 channels, H x W pixels, P = H * W, L one of them, N of the images of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as vision

Interpolation = Literal["nearest", "bilinear", "bicubic"]

FILL = 128
"""Grey level of what a moved image uncovers."""

# So many at a time on a CPU: copies of a whole batch in wider types fall out of its cache, which costs up to 4x.
CPU_PIXELS = 200_000


def change_(images_BCHW: Tensor, rows_N: Tensor, operation: Callable[[Tensor, Tensor], Tensor]) -> None:
    """In place: the images at `rows_N` (on the CPU) become `operation(those images, their rows)`."""
    if not len(rows_N):
        return
    is_cpu = images_BCHW.device.type == "cpu"
    at_once = max(1, CPU_PIXELS // images_BCHW[0, 0].numel()) if is_cpu else len(rows_N)
    for rows_n in rows_N.split(at_once):
        index_n = onto(images_BCHW, rows_n)
        changed_nCHW = operation(images_BCHW.index_select(0, index_n), rows_n)
        if is_cpu:  # where index_copy_ of bytes takes ten times as long
            for row, image_CHW in zip(rows_n.tolist(), changed_nCHW, strict=True):
                images_BCHW[row] = image_CHW
        else:
            images_BCHW.index_copy_(0, index_n, changed_nCHW)


def onto(images_BCHW: Tensor, values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`values` on the images' device; a plain copy to a GPU would wait until it has done all that is queued."""
    return values.to(images_BCHW.device, dtype, non_blocking=True)


def brightness(images_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """`ImageEnhance.Brightness(image).enhance(factor)`."""
    return _blend(images_BCHW, images_BCHW.new_zeros((), dtype=torch.float32), factor_B)


def contrast(images_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """`ImageEnhance.Contrast(image).enhance(factor)`: away from, or towards, the image's mean grey."""
    # Sums of whole numbers, which float64 holds exactly.
    mean_B111 = _grey(images_BCHW).mean((1, 2, 3), keepdim=True, dtype=torch.float64).add_(0.5).floor_()
    return _blend(images_BCHW, mean_B111.float(), factor_B)


def color(images_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """`ImageEnhance.Color(image).enhance(factor)`: away from, or towards, the grey image."""
    return _blend(images_BCHW, _grey(images_BCHW), factor_B)


def sharpness(images_BCHW: Tensor, factor_B: Tensor) -> Tensor:
    """`ImageEnhance.Sharpness(image).enhance(factor)`: away from, or towards, the smoothed image.

    The filter weighs the middle of 3 x 3 pixels 5 and its neighbours 1; the outermost pixels stay as they are.
    """
    wide = images_BCHW.short()  # sums in int16: a convolution in float takes ten times as long on a CPU
    middle = wide[..., 1:-1, 1:-1]
    across = wide[..., :-2] + wide[..., 1:-1] + wide[..., 2:]
    total = (across[..., :-2, :] + across[..., 1:-1, :] + across[..., 2:, :]).add_(middle, alpha=4)
    sharp_BCHW = images_BCHW.clone()
    sharp_BCHW[..., 1:-1, 1:-1] = _blend(middle, total.float().div_(13).round_(), factor_B)
    return sharp_BCHW


def posterize(images_BCHW: Tensor, bits_B: Tensor) -> Tensor:
    """`ImageOps.posterize(image, bits)`: the upper bits are kept; 0 bits, which Pillow refuses, are black."""
    return images_BCHW & onto(images_BCHW, 256 - 2 ** (8 - bits_B), torch.uint8)[:, None, None, None]


def solarize(images_BCHW: Tensor, threshold_B: Tensor) -> Tensor:
    """`ImageOps.solarize(image, threshold)`: values from the threshold on are inverted."""
    values_256 = torch.arange(256)
    return _look_up(images_BCHW, torch.where(values_256 < threshold_B[:, None], values_256, 255 - values_256))


def solarize_add(images_BCHW: Tensor, amount_B: Tensor) -> Tensor:
    """`solarize_add` of timm: values below 128 are raised by `amount`, to 255 at most."""
    values_256 = torch.arange(256)
    raised_B256 = (values_256 + amount_B[:, None].long()).clamp(max=255)
    return _look_up(images_BCHW, torch.where(values_256 < 128, raised_B256, values_256))


def invert(images_BCHW: Tensor, unused_B: Tensor) -> Tensor:
    """`ImageOps.invert(image)`."""
    return vision.invert(images_BCHW)


def autocontrast(images_BCHW: Tensor, unused_B: Tensor) -> Tensor:
    """`ImageOps.autocontrast(image)`, within one level: each channel stretched over all values."""
    return vision.autocontrast(images_BCHW)


def equalize(images_BCHW: Tensor, unused_B: Tensor) -> Tensor:
    """`ImageOps.equalize(image)`: each channel's histogram made flat."""
    return vision.equalize(images_BCHW)


def shear_x(images_BCHW: Tensor, shear_B: Tensor, interpolation: Interpolation) -> Tensor:
    """`affine` with (1, shear, 0, 0, 1, 0): rows to the left by `shear` of their distance from the top."""
    return affine(images_BCHW, _matrix(1, shear_B, 0, 0, 1, 0), interpolation)


def shear_y(images_BCHW: Tensor, shear_B: Tensor, interpolation: Interpolation) -> Tensor:
    """`affine` with (1, 0, 0, shear, 1, 0): columns up by `shear` of their distance from the left."""
    return affine(images_BCHW, _matrix(1, 0, 0, shear_B, 1, 0), interpolation)


def translate_x(images_BCHW: Tensor, share_B: Tensor, interpolation: Interpolation) -> Tensor:
    """`affine` with (1, 0, share * width, 0, 1, 0): to the left."""
    return affine(images_BCHW, _matrix(1, 0, share_B * images_BCHW.shape[-1], 0, 1, 0), interpolation)


def translate_y(images_BCHW: Tensor, share_B: Tensor, interpolation: Interpolation) -> Tensor:
    """`affine` with (1, 0, 0, 0, 1, share * height): up."""
    return affine(images_BCHW, _matrix(1, 0, 0, 0, 1, share_B * images_BCHW.shape[-2]), interpolation)


def rotate(images_BCHW: Tensor, degrees_B: Tensor, interpolation: Interpolation) -> Tensor:
    """`image.rotate(degrees, interpolation, fillcolor=FILL)`: counter-clockwise about the middle."""
    y, x = (side / 2 for side in images_BCHW.shape[-2:])
    cos_B, sin_B = degrees_B.deg2rad().cos(), degrees_B.deg2rad().sin()
    matrix_B23 = _matrix(cos_B, -sin_B, x - cos_B * x + sin_B * y, sin_B, cos_B, y - sin_B * x - cos_B * y)
    return affine(images_BCHW, matrix_B23, interpolation)


def affine(images_BCHW: Tensor, matrix_B23: Tensor, interpolation: Interpolation) -> Tensor:
    """`image.transform(size, AFFINE, matrix, interpolation, fillcolor=FILL)`: matrix @ (x, y, 1) comes to (x, y).

    Coordinates are pixels from the upper left corner, a pixel's middle at one half; the matrix is float64, on
    the CPU. Only nearest is Pillow's to the bit. The others are PyTorch's: rounded, where Pillow cuts off; a
    softer bicubic (-0.75 against -1); within a pixel of the border they blend with the fill.
    """
    height, width = images_BCHW.shape[-2:]
    # What lies outside reads this frame, so that no pixel needs to be asked whether it does.
    framed = functional.pad(images_BCHW, (1, 1, 1, 1), value=FILL)
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
    grid_BHW2 = _sources(onto(images_BCHW, steps_B23, torch.float32), height, width).permute(0, 2, 3, 1)
    return _sample(framed, grid_BHW2, interpolation)


def crop(images_BCHW: Tensor, box_B22: Tensor) -> Tensor:
    """Each image's box, enlarged to the whole: torchvision's `resized_crop` to the image's own size, within one level.

    `box_B22` is int64, on the CPU: [[top, bottom], [left, right]], of which bottom and right are excluded.
    """
    places = (_inside(box_B22[:, i], size) for i, size in enumerate(images_BCHW.shape[-2:]))
    y_BH, x_BW = (onto(images_BCHW, places_BL, torch.float32) for places_BL in places)
    xy_BHW = torch.broadcast_tensors(x_BW[:, None], y_BH[..., None])
    grid_BHW2 = torch.stack(xy_BHW, dim=1).permute(0, 2, 3, 1)  # x and y apart in memory: faster to write and to read
    return _sample(images_BCHW, grid_BHW2, "bilinear")


def paint(images_BCHW: Tensor, box_B22: Tensor, color_B3: Tensor) -> Tensor:
    """Each image's box, as for `crop` but clipped at the border, in one colour (int64, on the CPU)."""
    bits = (_between(box_B22[:, i], size) for i, size in enumerate(images_BCHW.shape[-2:]))
    rows_BH, columns_BW = (onto(images_BCHW, bits_BL) for bits_BL in bits)
    inside_B1HW = (rows_BH[:, :, None] & columns_BW[:, None]).unsqueeze(1)
    color_B311 = onto(images_BCHW, color_B3, torch.uint8)[:, :, None, None]
    # On bits, all 0 or all 1, since choosing between bytes (`where`) takes ten times as long on a CPU.
    return images_BCHW ^ ((images_BCHW ^ color_B311) & inside_B1HW)


def _sample(images_BCHW: Tensor, grid_BHW2: Tensor, interpolation: Interpolation) -> Tensor:
    sampled = functional.grid_sample(
        images_BCHW.float(), grid_BHW2, mode=interpolation, padding_mode="border", align_corners=False
    )
    return _to_uint8(sampled.round_())


def _inside(ends_B2: Tensor, size: int) -> Tensor:
    """(B, size): places across [first, end), half a pixel away from both ends, in -1 to 1 for [0, size)."""
    first_B1, end_B1 = ends_B2.double().split(1, dim=1)
    places_BL = first_B1 + (end_B1 - first_B1) * (torch.arange(size) + 0.5) / size
    return places_BL.clamp(first_B1 + 0.5, end_B1 - 0.5) * (2 / size) - 1


def _between(ends_B2: Tensor, size: int) -> Tensor:
    """(B, size) uint8: 255 in [first, end), else 0."""
    positions_L = torch.arange(size)
    return ((positions_L >= ends_B2[:, :1]) & (positions_L < ends_B2[:, 1:])).to(torch.uint8) * 255


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


def _look_up(images_BCHW: Tensor, table_B256: Tensor) -> Tensor:
    """`image.point(table)`: each value becomes its entry in the image's table."""
    table_BC256 = onto(images_BCHW, table_B256, torch.uint8)[:, None].expand(-1, images_BCHW.shape[1], -1)
    return table_BC256.gather(2, images_BCHW.flatten(2).long()).view_as(images_BCHW)


def _grey(images_BCHW: Tensor) -> Tensor:
    """(B, 1, H, W) float32: `image.convert("L")`, whose whole numbers just fit float32's 24 bits."""
    red, green, blue = images_BCHW.float().split(1, dim=1)
    return (red * 19595).add_(green, alpha=38470).add_(blue, alpha=7471).add_(32768).div_(65536).floor_()


def _blend(images_BCHW: Tensor, degenerate: Tensor, factor_B: Tensor) -> Tensor:
    """`Image.blend(degenerate, image, factor)` -> uint8, cut off to whole levels as there; `degenerate` is float32."""
    factor_B111 = onto(images_BCHW, factor_B, torch.float32)[:, None, None, None]
    return _to_uint8((images_BCHW.float() - degenerate).mul_(factor_B111).add_(degenerate))


def _to_uint8(images_BCHW: Tensor) -> Tensor:
    """Float -> uint8, within [0, 255], cut off; by way of int16, which takes a fifth of the time on a CPU."""
    return images_BCHW.clamp_(0, 255).to(torch.int16).to(torch.uint8)
