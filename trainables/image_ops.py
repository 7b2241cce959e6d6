"""Operations on batches of uint8 images, each image with its own argument, as Pillow does them one at a time.

Here those that change values; `image_moves` has those that move pixels. Each returns a new batch and names the
Pillow call that it equals: to the bit, where nothing else is said. Arguments are (B,) float64 on the CPU, one
number an image; no operation makes the CPU wait for a GPU.

Shape letters: B images, C = 3 channels, H x W pixels, L one of them, N of the images of a batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

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


def to_uint8(images_BCHW: Tensor) -> Tensor:
    """Float -> uint8, within [0, 255], cut off; by way of int16, which takes a fifth of the time on a CPU."""
    return images_BCHW.clamp_(0, 255).to(torch.int16).to(torch.uint8)


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


def paint(images_BCHW: Tensor, box_B22: Tensor, color_B3: Tensor) -> Tensor:
    """Each image's box, clipped at the border, in one colour.

    `box_B22` is [[top, bottom], [left, right]], of which bottom and right are excluded; int64 like the colours,
    both on the CPU.
    """
    bits = (_between(box_B22[:, i], size) for i, size in enumerate(images_BCHW.shape[-2:]))
    rows_BH, columns_BW = (onto(images_BCHW, bits_BL) for bits_BL in bits)
    inside_B1HW = (rows_BH[:, :, None] & columns_BW[:, None]).unsqueeze(1)
    color_B311 = onto(images_BCHW, color_B3, torch.uint8)[:, :, None, None]
    # On bits, all 0 or all 1, since choosing between bytes (`where`) takes ten times as long on a CPU.
    return images_BCHW ^ ((images_BCHW ^ color_B311) & inside_B1HW)


def _between(ends_B2: Tensor, size: int) -> Tensor:
    """(B, size) uint8: 255 in [first, end), else 0."""
    positions_L = torch.arange(size)
    return ((positions_L >= ends_B2[:, :1]) & (positions_L < ends_B2[:, 1:])).to(torch.uint8) * 255


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
    return to_uint8((images_BCHW.float() - degenerate).mul_(factor_B111).add_(degenerate))
