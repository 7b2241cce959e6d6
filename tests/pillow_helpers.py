"""Images to distort, and the way from a batch to Pillow and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate


def photographs(num: int, height: int, width: int | None = None, *, noise: float = 4.0) -> Tensor:
    """uint8 (num, 3, height, width), always the same: smooth colours from black to white, and some noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(num, 3, 5, 5, generator=generator) * 360 - 50
    smooth = interpolate(coarse, size=(height, width or height), mode="bicubic")
    return (smooth + noise * torch.randn(smooth.shape, generator=generator)).clamp(0, 255).to(torch.uint8)


def picture(image: Tensor) -> Image.Image:
    """(3, H, W) uint8."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def by_pillow(
    images: Tensor, operation: Callable[[Image.Image, Any], Image.Image], arguments: Sequence[float]
) -> Tensor:
    """Each image through the operation, with its own argument."""
    return torch.stack([pixels(operation(picture(one), value)) for one, value in zip(images, arguments, strict=True)])


def distance(some: Tensor, other: Tensor) -> Tensor:
    """In levels."""
    return (some.int() - other.int()).abs()
