"""The pipeline and its steps by construction, mixing of labels with pixels, and what a seed fixes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2

from datasets import transforms
from tests.benchmarks import augment as benchmark
from tests.pillow_helpers import photographs
from trainables import augment, rand_augment
from trainables.augment import build_augment, mix, resize
from trainables.config import AugmentConfig

torch.set_num_threads(1)

EVERYTHING: dict[str, Any] = {"crop": "random_resized", "flip": 0.5, "cutout": 0.5, "rand_augment": "ml_decoder"}


def run(config: AugmentConfig, images: Tensor, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return build_augment(config)(images)


def test_nothing_asked_nothing_done() -> None:
    images, labels = photographs(3, 16), torch.rand(3, 4)
    state = torch.get_rng_state()
    assert build_augment(AugmentConfig())(images) is images
    assert build_augment(AugmentConfig(cutout=0.5, cutout_probability=0.0))(images) is images
    mixed = mix(images.float(), labels, AugmentConfig())
    assert mixed[1] is labels and resize(images, 16) is images
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8)])
def test_anything_but_a_batch_of_bytes_is_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"uint8 \(B, 3, H, W\), but got"):
        build_augment(AugmentConfig(flip=1.0))(images)


@settings(max_examples=30, deadline=None)
@given(
    num=st.integers(1, 7),
    size=st.tuples(st.integers(8, 40), st.integers(8, 40)),
    rand=st.sampled_from(["none", "ml_decoder", "increasing"]),
    last=st.booleans(),
)
def test_bytes_in_bytes_out_and_the_input_is_left_alone(num: int, size: tuple[int, int], rand: str, last: bool) -> None:
    images = torch.randint(256, (num, 3, *size), dtype=torch.uint8)
    if last:
        images = images.contiguous(memory_format=torch.channels_last)
    before = images.clone()
    config = AugmentConfig.model_validate(EVERYTHING | {"rand_augment": rand})
    got = run(config, images)
    assert got.dtype == torch.uint8 and got.shape == images.shape and torch.equal(images, before)
    assert torch.equal(got, run(config, images))


def test_a_seed_fixes_it_and_images_of_a_batch_differ() -> None:
    images = photographs(1, 32).repeat(20, 1, 1, 1)
    config = AugmentConfig.model_validate(EVERYTHING)
    assert torch.equal(run(config, images, 1), run(config, images, 1))
    assert not torch.equal(run(config, images, 1), run(config, images, 2))
    assert len(run(config, images, 1).flatten(1).unique(dim=0)) == 20


def test_the_order_is_crop_flip_cutout_rand_augment() -> None:
    images = photographs(30, 24)
    expected = images.clone()
    torch.manual_seed(5)
    augment._crop_(expected, (0.08, 1.0))
    augment._flip_(expected, 0.5)
    augment._cutout_(expected, 0.5, 1.0)
    rand_augment.ml_decoder_(expected)
    assert torch.equal(run(AugmentConfig.model_validate(EVERYTHING), images, 5), expected)


def test_increasing_takes_its_strength_from_the_configuration() -> None:
    images = photographs(30, 16)
    expected = images.clone()
    torch.manual_seed(4)
    rand_augment.increasing_(expected, 3.0, 2.0)
    config = AugmentConfig(rand_augment="increasing", rand_magnitude=3.0, rand_magnitude_std=2.0)
    assert torch.equal(run(config, images, 4), expected)


@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_flips_are_mirror_images_as_often_as_asked(probability: float) -> None:
    images = photographs(1, 12).repeat(3000, 1, 1, 1)
    got = run(AugmentConfig(flip=probability), images)
    flipped = (got == images.flip(-1)).flatten(1).all(1)
    assert ((got == images).flatten(1).all(1) ^ flipped).all()
    assert abs(flipped.double().mean() - probability) < 0.03


@pytest.mark.parametrize(("share", "side"), [(0.5, 21), (0.24, 11), (1.0, 41)])
def test_cutout_paints_one_square_of_one_colour_anywhere(share: float, side: int) -> None:
    num, size = 2000, 40
    images = torch.zeros(num, 3, size, size, dtype=torch.uint8)
    painted = (run(AugmentConfig(cutout=share), images) != 0).any(1)
    rows, columns = painted.any(2), painted.any(1)
    assert torch.equal(painted, rows[:, :, None] & columns[:, None])  # a rectangle
    middles = torch.arange(size)
    expected = ((middles + side // 2 + 1).clamp(max=size) - (middles - side // 2).clamp(min=0)).double().mean()
    for lines in (rows, columns):
        assert lines.sum(1).max() == min(side, size)
        assert abs(lines.sum(1).double().mean() - expected) < 0.5
    got = run(AugmentConfig(cutout=share), photographs(1, size).repeat(num, 1, 1, 1))
    colors = got[torch.arange(num), :, rows.int().argmax(1), columns.int().argmax(1)].double()
    assert ((colors.mean(0) - 127.5).abs() < 6).all() and ((colors.std(0) - 73.9).abs() < 4).all()
    assert ((torch.corrcoef(colors.T) - torch.eye(3)).abs() < 0.1).all()
    inside = got.permute(0, 2, 3, 1)[painted].double()
    assert torch.equal(inside, colors.repeat_interleave(painted.sum((1, 2)), dim=0))


def test_cutout_happens_as_often_as_asked() -> None:
    images = torch.zeros(3000, 3, 8, 8, dtype=torch.uint8)
    got = run(AugmentConfig(cutout=0.5, cutout_probability=0.3), images)
    assert abs(got.flatten(1).any(1).double().mean() - 0.3) < 0.03


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 0.6), (0.9, 1.0)])
def test_crop_boxes_are_drawn_as_torchvision_draws_them(scale: tuple[float, float]) -> None:
    torch.manual_seed(0)
    size, num = 64, 3000
    drawer = v2.RandomResizedCrop(size, scale=scale)
    image = torch.zeros(3, size, size)
    theirs = [drawer.make_params([image]) for _ in range(num)]
    their_boxes = [
        [[one["top"], one["top"] + one["height"]], [one["left"], one["left"] + one["width"]]] for one in theirs
    ]
    ours = augment._crop_boxes(num, size, size, scale)
    assert ours.min() >= 0 and ours.max() <= size
    for statistics in (box_statistics(ours), box_statistics(torch.tensor(their_boxes))):
        assert scale[0] - 0.03 < statistics["area"].min() and statistics["area"].max() < scale[1] + 0.03
    together = [torch.corrcoef(boxes[:, :, 0].T.double())[0, 1] for boxes in (ours, torch.tensor(their_boxes))]
    assert abs(together[0] - together[1]) < 0.1  # top and left
    for name, values in box_statistics(ours).items():
        expected = box_statistics(torch.tensor(their_boxes))[name]
        spread = max(float(expected.std()), 0.02)
        assert abs(values.mean() - expected.mean()) < 0.1 * spread and abs(values.std() - expected.std()) < 0.1 * spread


def box_statistics(boxes: Tensor, size: int = 64) -> dict[str, Tensor]:
    height, width = (boxes[:, i, 1].double() - boxes[:, i, 0] for i in (0, 1))
    place = boxes[:, :, 0].double()
    return {
        "area": height * width / size**2,
        "ratio": (width / height).log(),
        "top": place[:, 0] / size,
        "left": place[:, 1] / size,
    }


def test_a_crop_of_everything_is_the_image() -> None:
    images = photographs(9, 32)
    assert torch.equal(run(AugmentConfig(crop="random_resized", crop_scale=(1.0, 1.0)), images), images)


def test_crops_magnify_a_part_of_the_image() -> None:
    ramp = torch.arange(0, 256, 4, dtype=torch.uint8).expand(40, 3, 64, 64)
    got = run(AugmentConfig(crop="random_resized", crop_scale=(0.2, 0.4)), ramp)[:, 0, 0].int()
    assert (got.diff() >= 0).all()
    spans = got[:, -1] - got[:, 0]
    assert spans.float().mean() / 256 == pytest.approx(0.3**0.5, abs=0.06) and spans.unique().numel() > 10


@pytest.mark.parametrize(("size", "side"), [((64, 48), 32), ((20, 20), 31)])
def test_resize_is_that_of_the_data(size: tuple[int, int], side: int) -> None:
    images = photographs(3, 64)[:, :, : size[0], : size[1]].contiguous()
    expected = [transforms.resize(image.permute(1, 2, 0).contiguous().numpy(), side) for image in images]
    got = resize(images, side)
    assert got.dtype == torch.uint8
    np.testing.assert_array_equal(got.permute(0, 2, 3, 1).numpy(), np.stack(expected))


def test_nothing_waits_for_the_device() -> None:
    """On the meta device, which has shapes and no values, asking for a value is an error, as is mixing devices."""
    images = torch.empty(7, 3, 16, 16, dtype=torch.uint8, device="meta")
    got = resize(build_augment(AugmentConfig.model_validate(EVERYTHING))(images), 24)
    mixed, labels = mix(got.float(), torch.empty(7, 4, device="meta"), AugmentConfig(mixup=0.1, cutmix=1.0, repeats=3))
    assert mixed.shape == (7, 3, 24, 24) and labels.shape == (7, 4) and mixed.device.type == "meta"


def test_the_benchmark_runs(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["--batch-size", "3", "--sizes", "32", "--rounds", "2"])
    table = capsys.readouterr().out
    assert all(side in table for side in ("ours, batch", "torchvision v2", "Pillow", "ready images", "python"))
