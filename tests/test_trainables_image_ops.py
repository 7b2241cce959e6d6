"""Batched operations on values against Pillow's own, image by image; boxes of colour; images chosen from a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from timm.data.auto_augment import solarize_add as timm_solarize_add

from tests.pillow_helpers import by_pillow, distance, photographs
from trainables import image_ops

torch.set_num_threads(1)

FACTORS = [0.1, 0.4, 0.9, 1.0, 1.3, 1.9]
UNUSED = [0.0] * 6


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
    images = photographs(6, 37, 53) // 2 + 40  # not all values, so that stretching them is work
    for batch in (photographs(6, 37, 53), images):
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
    assert not image_ops.posterize(photographs(2, 37, 53), torch.tensor([0.0, 0.0])).any()


@given(
    box=st.lists(st.integers(-20, 60), min_size=4, max_size=4),
    color=st.lists(st.integers(0, 255), min_size=3, max_size=3),
)
def test_paint_fills_the_box_and_nothing_else(box: list[int], color: list[int]) -> None:
    images = photographs(2, 37, 53)
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
    images = photographs(2, 37, 53)
    image_ops.change_(images, torch.tensor([], dtype=torch.long), lambda *_: pytest.fail("nothing to do"))
    assert torch.equal(images, photographs(2, 37, 53))
