"""From the bytes of an image file to pixels of the wanted size, on the CPU, uint8 all the way."""

from __future__ import annotations

import io
import warnings

import numpy as np
import simplejpeg
from PIL import Image, ImageFile, UnidentifiedImageError

MAX_PIXELS = 50_000_000
"""Height x width above which an image is refused: 150 MB decoded."""

_PILLOW_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP")
"""The fallback's readers; rarer formats are left out because each is another parser for untrusted input."""

_LONGEST = 8  # short sides


class BadImageError(ValueError):
    """An image that cannot be decoded whole; the message is the reason, without any path."""


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image file at full size.

    libjpeg-turbo decodes strictly, so a damaged JPEG is seen. Pillow takes what it refuses but the eye would
    not: CMYK, a PNG named .jpg, stray bytes between markers. A truncated file is refused by both, never half
    filled. The EXIF orientation is not applied: COCO's labels do not depend on it, and published COCO
    pipelines that decode plainly see these very pixels.

    Args:
        data: the file's bytes.
        max_pixels: largest height x width, checked in the header before any pixel is decoded.

    Returns:
        (H, W, 3) uint8 RGB, writable.

    Raises:
        BadImageError: empty, too large, truncated, or not an image.
    """
    if not data:
        raise BadImageError("the file is empty")
    try:
        height, width, color_space, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(height, width, max_pixels)
        if color_space in ("RGB", "YCbCr", "Gray"):  # CMYK needs Adobe's inversion, which Pillow knows
            return simplejpeg.decode_jpeg(data)
    except BadImageError:
        raise
    except ValueError:
        pass
    return _decode_with_pillow(data, max_pixels)


def fit(image: np.ndarray, side: int, *, crop_share: float | None = None) -> np.ndarray:
    """An image as it is fed and judged: squashed to a square, or its centre at its own aspect.

    Args:
        image: (H, W, 3) uint8.
        side: wanted height and width in pixels.
        crop_share: None squashes. A number resizes the short side to round(side / crop_share) and cuts the square
            out of the middle, as is the custom on ImageNet (0.875: 256, then 224).

    Returns:
        (side, side, 3) uint8.
    """
    if crop_share is None:
        return resize(image, side)
    height, width, _ = image.shape
    short = min(height, width)
    # What lies beyond is cut off anyway; resized, the long side of a thread of pixels would fill the memory.
    image = _centre(image, min(height, _LONGEST * short), min(width, _LONGEST * short))
    height, width, _ = image.shape
    short_wanted = round(side / crop_share)
    resized = _interpolate(image, height * short_wanted // short, width * short_wanted // short)
    return np.ascontiguousarray(_centre(resized, side, side))


def resize(image: np.ndarray, side: int) -> np.ndarray:
    """Resize to a square, ignoring the aspect: bilinear with antialiasing, computed and rounded in uint8.

    Args:
        image: (H, W, 3) uint8.
        side: wanted height and width in pixels.

    Returns:
        (side, side, 3) uint8; `image` itself where it has that size already.
    """
    return _interpolate(image, side, side)


def to_chw(image: np.ndarray) -> np.ndarray:
    """(H, W, C) -> (C, H, W), a view."""
    return image.transpose(2, 0, 1)


def encode(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 RGB -> JPEG of quality 95 without chroma subsampling, for images stored resized."""
    pixels = np.ascontiguousarray(image)
    return simplejpeg.encode_jpeg(pixels, quality=95, colorspace="RGB", colorsubsampling="444")


def _centre(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """A view of the middle (height, width, 3) of an image that is at least as large."""
    top, left = round((image.shape[0] - height) / 2), round((image.shape[1] - width) / 2)
    return image[top : top + height, left : left + width]


def _interpolate(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    # Imported here so that a process whose images need no resize does not pay for torch.
    import torch
    from torch.nn.functional import interpolate

    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).permute(2, 0, 1)[None]
    resized = interpolate(pixels, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    return np.ascontiguousarray(resized[0].permute(1, 2, 0).numpy())


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise BadImageError(f"{width} x {height} pixels are more than the {max_pixels} that are decoded")


def _decode_with_pillow(data: bytes, max_pixels: int) -> np.ndarray:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError(
            "Truncated images must be refused, but PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set and would have "
            "their missing part filled with grey. Leave it at False."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of size, which is checked below, and of transparent palettes
            with Image.open(io.BytesIO(data), formats=_PILLOW_FORMATS) as image:
                _check_size(image.height, image.width, max_pixels)
                if image.mode == "F" or image.mode.startswith("I"):
                    raise BadImageError(f"pixels of mode {image.mode} have no agreed meaning in 8 bits")
                return np.array(image.convert("RGB"))
    except (BadImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:  # its own message holds an address in memory
        raise BadImageError(f"not an image of the formats {', '.join(_PILLOW_FORMATS)}") from error
    except Exception as error:
        # On damaged files Pillow's parsers raise what they run into: SyntaxError, struct.error, IndexError.
        raise BadImageError(f"{type(error).__name__}: {error}") from error
