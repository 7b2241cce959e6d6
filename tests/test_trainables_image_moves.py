"""Batched moves of pixels against Pillow's own, image by image; crops against torchvision's; what a move uncovers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as vision

from tests.pillow_helpers import by_pillow, distance, photographs
from trainables import image_moves
from trainables.image_moves import FILL

torch.set_num_threads(1)

HEIGHT, WIDTH = 37, 53
GREY = (FILL,) * 3
RESAMPLE = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def moved(image: Image.Image, matrix: tuple[float, ...], interpolation: str) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, RESAMPLE[interpolation], fillcolor=GREY)


MOVES: dict[str, Callable[[Image.Image, float, str], Image.Image]] = {
    "shear_x": lambda image, value, how: moved(image, (1, value, 0, 0, 1, 0), how),
    "shear_y": lambda image, value, how: moved(image, (1, 0, 0, value, 1, 0), how),
    "translate_x": lambda image, value, how: moved(image, (1, 0, value * image.width, 0, 1, 0), how),
    "translate_y": lambda image, value, how: moved(image, (1, 0, 0, 0, 1, value * image.height), how),
    "rotate": lambda image, value, how: image.rotate(100 * value, RESAMPLE[how], fillcolor=GREY),
}


def move(name: str, images: Tensor, values: list[float], interpolation: str) -> Tensor:
    arguments = torch.tensor(values, dtype=torch.float64) * (100 if name == "rotate" else 1)
    return getattr(image_moves, name)(images, arguments, interpolation)


@pytest.mark.parametrize("name", ["translate_x", "translate_y", "rotate"])
def test_nearest_moves_equal_pillow_to_the_bit(name: str) -> None:
    values = [-0.3, -1 / 30, 0.0, 0.1, 0.2, 150 / 331]
    expected = by_pillow(
        photographs(6, HEIGHT, WIDTH), lambda image, value: MOVES[name](image, value, "nearest"), values
    )
    assert torch.equal(move(name, photographs(6, HEIGHT, WIDTH), values, "nearest"), expected)


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
    got = image_moves.affine(images, torch.tensor(matrix, dtype=torch.float64).view(1, 2, 3), "nearest")
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("name", "interpolation", "different"),
    [
        ("shear_x", "bilinear", 0.01),
        ("shear_y", "bilinear", 0.01),
        ("shear_x", "bicubic", 0.01),
        ("shear_y", "bicubic", 0.01),
        ("translate_x", "bilinear", 0.6),  # rounded, where Pillow cuts off
        ("translate_y", "bilinear", 0.6),
        ("rotate", "bilinear", 0.6),
    ],
)
def test_smooth_moves_equal_pillow_inside(name: str, interpolation: str, different: float) -> None:
    values = [-0.3, -1 / 30, 0.05, 0.1, 0.2, 0.28]
    images = photographs(6, HEIGHT, WIDTH)
    expected = by_pillow(images, lambda image, value: MOVES[name](image, value, interpolation), values)
    # Two pixels from the border of what is moved, the fill does not reach.
    border = torch.ones(1, 1, HEIGHT, WIDTH, dtype=torch.uint8)
    border[..., 2:-2, 2:-2] = 255
    inside = by_pillow(border.expand(6, 3, -1, -1), lambda image, value: MOVES[name](image, value, "nearest"), values)
    inside = -functional.max_pool2d(-inside.float(), 3, 1, 1) == 255
    differences = distance(move(name, images, values, interpolation), expected)[inside]
    assert inside.float().mean() > 0.4
    assert differences.max() <= 1 and differences.float().mean() < different


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_what_a_move_uncovers_is_grey(interpolation: str) -> None:
    got = move("translate_x", photographs(2, HEIGHT, WIDTH) // 4, [0.5, -0.5], interpolation)
    middle = WIDTH // 2
    assert (got[0, :, :, middle + 2 :] == FILL).all() and (got[1, :, :, : middle - 1] == FILL).all()
    assert (got[0, :, :, : middle - 1] < 70).all() and (got[1, :, :, middle + 2 :] < 70).all()


def test_a_crop_equals_torchvisions() -> None:
    images = photographs(6, HEIGHT, WIDTH)
    boxes = [(0, 37, 0, 53), (0, 5, 0, 6), (30, 37, 40, 53), (10, 30, 3, 50), (36, 37, 0, 53), (4, 30, 20, 21)]
    got = image_moves.crop(images, torch.tensor(boxes).unflatten(1, (2, 2)))
    for image, one, (top, bottom, left, right) in zip(images, got, boxes, strict=True):
        expected = vision.resized_crop(image, top, left, bottom - top, right - left, [HEIGHT, WIDTH], antialias=True)
        assert distance(one, expected).max() <= 1
    assert torch.equal(got[0], images[0])
