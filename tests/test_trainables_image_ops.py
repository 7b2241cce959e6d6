"""Batched operations against Pillow's own, image by image; torchvision's crop; what lies outside; no wait for a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from timm.data.auto_augment import solarize_add as timm_solarize_add
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as vision

from trainables import image_ops
from trainables.image_ops import FILL, Interpolation

torch.set_num_threads(1)

HEIGHT, WIDTH = 37, 53
FACTORS = [0.1, 0.4, 0.9, 1.0, 1.3, 1.9]
UNUSED = [0.0] * 6
GREY = (FILL,) * 3
RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def photographs(num: int = 6, height: int = HEIGHT, width: int = WIDTH, noise: float = 4.0) -> Tensor:
    """Smooth colours from black to white, and some noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(num, 3, 5, 5, generator=generator) * 360 - 50
    smooth = functional.interpolate(coarse, size=(height, width), mode="bicubic")
    return (smooth + noise * torch.randn(smooth.shape, generator=generator)).clamp(0, 255).to(torch.uint8)


def picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def by_pillow(images: Tensor, operation: Callable[[Image.Image, Any], Image.Image], arguments: list[float]) -> Tensor:
    done = [np.array(operation(picture(one), value)) for one, value in zip(images, arguments, strict=True)]
    return torch.from_numpy(np.stack(done)).permute(0, 3, 1, 2)


def distance(some: Tensor, other: Tensor) -> Tensor:
    return (some.int() - other.int()).abs()


def moved(image: Image.Image, matrix: tuple[float, ...], interpolation: Interpolation) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, RESAMPLE[interpolation], fillcolor=GREY)


MOVES: dict[str, Callable[[Image.Image, float, Interpolation], Image.Image]] = {
    "shear_x": lambda image, value, how: moved(image, (1, value, 0, 0, 1, 0), how),
    "shear_y": lambda image, value, how: moved(image, (1, 0, 0, value, 1, 0), how),
    "translate_x": lambda image, value, how: moved(image, (1, 0, value * image.width, 0, 1, 0), how),
    "translate_y": lambda image, value, how: moved(image, (1, 0, 0, 0, 1, value * image.height), how),
    "rotate": lambda image, value, how: image.rotate(100 * value, RESAMPLE[how], fillcolor=GREY),
}


def move(name: str, images: Tensor, values: list[float], interpolation: Interpolation) -> Tensor:
    arguments = torch.tensor(values, dtype=torch.float64) * (100 if name == "rotate" else 1)
    return getattr(image_ops, name)(images, arguments, interpolation)


@pytest.mark.parametrize(
    ("name", "pillow", "arguments", "levels"),
    [
        ("brightness", lambda image, factor: ImageEnhance.Brightness(image).enhance(factor), FACTORS, 0),
        ("contrast", lambda image, factor: ImageEnhance.Contrast(image).enhance(factor), FACTORS, 0),
        ("color", lambda image, factor: ImageEnhance.Color(image).enhance(factor), FACTORS, 0),
        ("sharpness", lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor), FACTORS, 0),
        ("posterize", lambda image, bits: ImageOps.posterize(image, int(bits)), [1, 2, 4, 5, 7, 8], 0),
        ("solarize", lambda image, threshold: ImageOps.solarize(image, threshold), [0, 1, 28.5, 128, 227.6, 256], 0),
        ("solarize_add", lambda image, amount: timm_solarize_add(image, int(amount)), [0, 1, 50, 77, 110, 200], 0),
        ("invert", lambda image, unused: ImageOps.invert(image), UNUSED, 0),
        ("equalize", lambda image, unused: ImageOps.equalize(image), UNUSED, 0),
        ("autocontrast", lambda image, unused: ImageOps.autocontrast(image), UNUSED, 1),
    ],
)
def test_what_changes_colours_equals_pillow(
    name: str, pillow: Callable[[Image.Image, Any], Image.Image], arguments: list[float], levels: int
) -> None:
    images = photographs() // 2 + 40  # not all values, so that stretching them is work
    for batch in (photographs(), images):
        got = getattr(image_ops, name)(batch, torch.tensor(arguments, dtype=torch.float64))
        assert distance(got, by_pillow(batch, pillow, arguments)).max() <= levels
    changed = distance(got, images).flatten(1).any(1)
    assert changed.sum() >= 4  # the factor 1, 8 bits and a threshold of 256 change nothing


@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
def test_images_of_few_values_equal_pillow(name: str) -> None:
    images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    images[1] = 200
    images[2, :, :5] = 77
    images[3, 0, 3, 3], images[3, 1] = 255, 9
    pillow = getattr(ImageOps, name)
    got = getattr(image_ops, name)(images, torch.zeros(4))
    assert distance(got, by_pillow(images, lambda image, unused: pillow(image), UNUSED[:4])).max() <= 1


def test_no_bits_are_black() -> None:
    assert not image_ops.posterize(photographs(2), torch.tensor([0.0, 0.0])).any()


@pytest.mark.parametrize("name", MOVES)
def test_nearest_moves_equal_pillow_to_the_bit(name: str) -> None:
    values = [-0.3, -1 / 30, 0.0, 0.1, 0.2, 150 / 331]
    expected = by_pillow(photographs(), lambda image, value: MOVES[name](image, value, "nearest"), values)
    assert torch.equal(move(name, photographs(), values, "nearest"), expected)


@settings(max_examples=60, deadline=None)
@given(
    entries=st.lists(st.floats(-1.5, 1.5), min_size=4, max_size=4),
    shifts=st.lists(st.floats(-60, 60), min_size=2, max_size=2),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_any_nearest_move_equals_pillow(entries: list[float], shifts: list[float], size: tuple[int, int]) -> None:
    assume(entries[1] or entries[2])  # Pillow scales and shifts in floating point, and may round an edge otherwise
    matrix = (entries[0], entries[1], shifts[0], entries[2], entries[3], shifts[1])
    images = photographs(1, *size, noise=20)
    expected = by_pillow(images, lambda image, unused: moved(image, matrix, "nearest"), [0])
    got = image_ops.affine(images, torch.tensor(matrix, dtype=torch.float64).view(1, 2, 3), "nearest")
    assert torch.equal(got, expected)


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize(("interpolation", "levels", "mean"), [("bilinear", 1, 0.6), ("bicubic", 6, 0.9)])
def test_smooth_moves_are_close_to_pillow_inside(
    name: str, interpolation: Interpolation, levels: int, mean: float
) -> None:
    values = [-0.3, -1 / 30, 0.05, 0.1, 0.2, 0.28]
    images = photographs()
    expected = by_pillow(images, lambda image, value: MOVES[name](image, value, interpolation), values)
    # Two pixels from the border of what is moved, the fill does not reach.
    border = torch.ones(1, 1, HEIGHT, WIDTH, dtype=torch.uint8)
    border[..., 2:-2, 2:-2] = 255
    inside = by_pillow(border.expand(6, 3, -1, -1), lambda image, value: MOVES[name](image, value, "nearest"), values)
    inside = -functional.max_pool2d(-inside.float(), 3, 1, 1) == 255
    differences = distance(move(name, images, values, interpolation), expected)[inside]
    assert inside.float().mean() > 0.4
    assert differences.max() <= levels and differences.float().mean() < mean  # half a level: Pillow cuts off


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_what_a_move_uncovers_is_grey(interpolation: Interpolation) -> None:
    got = move("translate_x", photographs(2) // 4, [0.5, -0.5], interpolation)
    middle = WIDTH // 2
    assert (got[0, :, :, middle + 2 :] == FILL).all() and (got[1, :, :, : middle - 1] == FILL).all()
    assert (got[0, :, :, : middle - 1] < 70).all() and (got[1, :, :, middle + 2 :] < 70).all()


def test_a_crop_equals_torchvisions() -> None:
    images = photographs()
    boxes = [(0, 37, 0, 53), (0, 5, 0, 6), (30, 37, 40, 53), (10, 30, 3, 50), (36, 37, 0, 53), (4, 30, 20, 21)]
    got = image_ops.crop(images, torch.tensor(boxes).unflatten(1, (2, 2)))
    for image, one, (top, bottom, left, right) in zip(images, got, boxes, strict=True):
        expected = vision.resized_crop(image, top, left, bottom - top, right - left, [HEIGHT, WIDTH], antialias=True)
        assert distance(one, expected).max() <= 1
    assert torch.equal(got[0], images[0])


@given(
    box=st.lists(st.integers(-20, 60), min_size=4, max_size=4),
    color=st.lists(st.integers(0, 255), min_size=3, max_size=3),
)
def test_paint_fills_the_box_and_nothing_else(box: list[int], color: list[int]) -> None:
    images = photographs(2)
    expected = images.clone()
    top, bottom, left, right = (max(0, end) for end in box)
    expected[1, :, top:bottom, left:right] = torch.tensor(color, dtype=torch.uint8)[:, None, None]
    boxes = torch.tensor([[0, 0, 0, 0], box]).unflatten(1, (2, 2))
    assert torch.equal(image_ops.paint(images, boxes, torch.tensor([[1, 2, 3], color])), expected)


@pytest.mark.parametrize("pixels", [1, 200, 10**9])
def test_only_the_chosen_images_change_each_by_its_own_argument(monkeypatch: pytest.MonkeyPatch, pixels: int) -> None:
    monkeypatch.setattr(image_ops, "CPU_PIXELS", pixels)  # however many at a time
    images, before = torch.zeros(9, 3, 8, 8, dtype=torch.uint8), torch.zeros(9, 3, 8, 8, dtype=torch.uint8)
    numbers = torch.arange(9, dtype=torch.uint8)
    rows = torch.tensor([7, 0, 3, 4, 8])
    image_ops.change_(images, rows, lambda some, which: some + 10 * numbers[which, None, None, None] + 1)
    before[rows] = (10 * numbers[rows] + 1)[:, None, None, None]
    assert torch.equal(images, before)


def test_no_image_chosen_means_no_operation() -> None:
    images = photographs(2)
    image_ops.change_(images, torch.tensor([], dtype=torch.long), lambda *_: pytest.fail("nothing to do"))
    assert torch.equal(images, photographs(2))
