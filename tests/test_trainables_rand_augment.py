"""The two policies: their operations and magnitudes against Pillow and timm, and what they draw how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment
from torch import Tensor

from tests.benchmarks.augment import PILLOW_OPERATIONS
from tests.pillow_helpers import distance, photographs, picture, pixels
from trainables.rand_augment import INCREASING, ML_DECODER, Drawn, Policy, apply_, draw, increasing_, ml_decoder_

torch.set_num_threads(1)

TIMM_NAMES = {
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "color": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}
Distort = Callable[[Tensor], None]
MOVES = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")


def one_layer(policy: Policy, name: str, images: Tensor, level: Tensor, sign: Tensor) -> Tensor:
    """All images through one operation of the policy."""
    images, position = images.clone(), list(policy).index(name)
    arguments = tuple(choice.argument(level, sign) for choice in policy.values())
    apply_(images, policy, Drawn(torch.full((len(images),), position), arguments))
    return images


@pytest.mark.parametrize("name", [name for name in ML_DECODER if name != "cutout"])
def test_the_recipes_operations_equal_pillow_at_every_magnitude(name: str) -> None:
    magnitude, sign = torch.arange(18) // 2 + 1, torch.arange(18) % 2 * 2 - 1
    images = photographs(1, 40).expand(18, -1, -1, -1)
    got = one_layer(ML_DECODER, name, images, magnitude.double() / 9, sign.double())
    for one, image, number, side in zip(got, images, magnitude.tolist(), sign.tolist(), strict=True):
        differences = distance(one, pixels(PILLOW_OPERATIONS[name](picture(image), number / 9, side)))
        if name.startswith("shear"):  # at the border of the image the fill blends in
            assert (differences <= 1).float().mean() > 0.9
        else:
            assert differences.max() <= (name == "autocontrast")


def test_the_recipes_magnitudes_are_those_of_the_package() -> None:
    level = torch.arange(1, 10, dtype=torch.float64) / 9
    ranges = {
        "shear_x": np.linspace(0, 0.3, 10),
        "shear_y": np.linspace(0, 0.3, 10),
        "translate_x": np.linspace(0, 150 / 331, 10),
        "translate_y": np.linspace(0, 150 / 331, 10),
        "rotate": np.linspace(0, 30, 10),
        "color": 1 + np.linspace(0.0, 0.9, 10),
        "contrast": 1 + np.linspace(0.0, 0.9, 10),
        "sharpness": 1 + np.linspace(0.0, 0.9, 10),
        "brightness": 1 + np.linspace(0.0, 0.9, 10),
        "posterize": np.round(np.linspace(8, 4, 10), 0),
        "solarize": np.linspace(256, 0, 10),
        "cutout": np.round(np.linspace(0, 20, 10), 0),
    }
    for name, values in ranges.items():
        argument = ML_DECODER[name].argument(level, torch.ones(9, dtype=torch.float64))
        np.testing.assert_allclose(argument[:, 0] if name == "cutout" else argument, values[1:], rtol=1e-12)
    assert len(ML_DECODER) == 15 and ML_DECODER.keys() - ranges.keys() == {"autocontrast", "equalize", "invert"}


def test_the_recipe_rotates_one_way_only() -> None:
    level, sign = torch.full((2,), 0.5), torch.tensor([-1.0, 1.0])
    assert ML_DECODER["rotate"].argument(level, sign).tolist() == [15.0, 15.0]
    assert INCREASING["rotate"].argument(level, sign).tolist() == [-15.0, 15.0]


def test_the_recipes_small_cutout_is_a_square_of_an_even_side() -> None:
    images = torch.zeros(400, 3, 64, 64, dtype=torch.uint8)
    level = (torch.arange(400) % 9 + 1).double() / 9
    got = one_layer(ML_DECODER, "cutout", images, level, torch.ones(400))
    painted = (got > 0).any(1)
    sides = painted.sum(1).amax(1), painted.sum(2).amax(1)
    expected = torch.tensor([2, 4, 6, 8, 10, 12, 16, 18, 20])[torch.arange(400) % 9]
    clipped = (sides[0] < expected) | (sides[1] < expected)
    assert torch.equal(torch.maximum(*sides)[~clipped], expected[~clipped]) and 0 < clipped.float().mean() < 0.4
    assert (got.permute(0, 2, 3, 1)[painted] == torch.tensor([125, 122, 113])).all()


@pytest.mark.parametrize("name", INCREASING)
@pytest.mark.parametrize("magnitude", [0.0, 0.4, 3.0, 6.7, 7.0, 9.9])
def test_increasing_equals_timm(name: str, magnitude: float, monkeypatch: pytest.MonkeyPatch) -> None:
    image = photographs(1, 40)
    for sign, chance in ((-1.0, 0.9), (1.0, 0.1)):
        monkeypatch.setattr(auto_augment.random, "random", lambda chance=chance: chance)  # above one half: negated
        convert = auto_augment.LEVEL_TO_ARG[TIMM_NAMES[name]]
        arguments = convert(magnitude, {}) if convert else ()
        options = {"fillcolor": (128, 128, 128), "resample": Image.Resampling.BILINEAR}
        expected = pixels(auto_augment.NAME_TO_OP[TIMM_NAMES[name]](picture(image[0]), *arguments, **options))
        level = torch.tensor([magnitude / 10], dtype=torch.float64)
        differences = distance(one_layer(INCREASING, name, image, level, torch.tensor([sign]))[0], expected)
        if name in MOVES:  # at the border of the image the fill blends in
            assert (differences <= 1).float().mean() > 0.9
        else:
            assert differences.max() <= (name == "autocontrast")


def test_increasing_has_timms_operations() -> None:
    assert {TIMM_NAMES[name] for name in INCREASING} == set(auto_augment._RAND_INCREASING_TRANSFORMS)


@pytest.mark.parametrize("policy", [ML_DECODER, INCREASING])
def test_operations_and_signs_are_equally_likely_and_half_of_them_happen(policy: Policy) -> None:
    torch.manual_seed(0)
    num = 60_000
    drawn = draw(policy, torch.ones(num, dtype=torch.float64))
    counts = Counter(drawn.operation_B.tolist())
    assert set(counts) == set(range(-1, 15))
    assert abs(counts.pop(-1) / num - 0.5) < 0.01
    for count in counts.values():
        assert abs(count / num - 0.5 / 15) < 0.004
    shear = drawn.arguments[list(policy).index("shear_x")]
    assert set(shear.tolist()) == {-0.3, 0.3} and abs((shear > 0).double().mean() - 0.5) < 0.01


def test_the_recipe_draws_nine_magnitudes_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    levels = drawn_levels(monkeypatch, ml_decoder_)
    assert len(levels) == 2  # layers
    for level in levels:
        values, counts = (level * 9).unique(return_counts=True)
        assert torch.allclose(values, torch.arange(1.0, 10, dtype=torch.float64))
        assert ((counts / len(level) - 1 / 9).abs() < 0.02).all()


def test_increasing_draws_normal_magnitudes_within_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    for level in drawn_levels(monkeypatch, lambda images: increasing_(images, 7.0, 0.5)):
        assert abs(level.mean() - 0.7) < 0.003 and abs(level.std() - 0.05) < 0.003
    for level in drawn_levels(monkeypatch, lambda images: increasing_(images, 9.0, 5.0)):
        assert level.min() == 0 and level.max() == 1
    for level in drawn_levels(monkeypatch, lambda images: increasing_(images, 4.0, 0.0)):
        assert (level == 0.4).all()


def drawn_levels(monkeypatch: pytest.MonkeyPatch, distort_: Distort) -> list[Tensor]:
    """What `draw` is given, a layer each, for a batch of 5,000."""
    levels: list[Tensor] = []

    def note(policy: Policy, level: Tensor) -> Drawn:
        levels.append(level)
        return Drawn(torch.full((len(level),), -1), tuple(level for _ in policy))

    monkeypatch.setattr("trainables.rand_augment.draw", note)
    distort_(torch.zeros(5000, 3, 2, 2, dtype=torch.uint8))
    return levels


def test_each_image_gets_what_was_drawn_for_it() -> None:
    torch.manual_seed(3)
    images = photographs(64, 24)
    drawn = draw(ML_DECODER, torch.full((64,), 5 / 9, dtype=torch.float64))
    got, names = images.clone(), list(ML_DECODER)
    apply_(got, ML_DECODER, drawn)
    assert len(set(drawn.operation_B.tolist())) > 10
    for number, operation in enumerate(drawn.operation_B.tolist()):
        if operation < 0:
            assert torch.equal(got[number], images[number])
        elif names[operation] in ("brightness", "color", "solarize", "translate_y", "rotate", "equalize"):
            sign = 1 if drawn.arguments[names.index("shear_x")][number] > 0 else -1
            expected = PILLOW_OPERATIONS[names[operation]](picture(images[number]), 5 / 9, sign)
            assert torch.equal(got[number], pixels(expected))


@pytest.mark.parametrize("distort_", [ml_decoder_, lambda images: increasing_(images, 7.0, 0.5)])
@pytest.mark.parametrize("num", [1, 3, 257])
def test_a_seed_fixes_it_and_images_of_a_batch_differ(distort_: Distort, num: int) -> None:
    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        images = photographs(1, 16).repeat(num, 1, 1, 1)
        distort_(images)
        return images

    assert torch.equal(run(1), run(1))
    assert any(not torch.equal(run(1), run(seed)) for seed in range(2, 9))
    assert run(1).dtype == torch.uint8
    if num > 100:
        unchanged = (run(1) == photographs(1, 16).repeat(num, 1, 1, 1)).flatten(1).all(1).float().mean()
        assert 0.15 < unchanged < 0.4  # a quarter is spared by both layers
        assert len(run(1).flatten(1).unique(dim=0)) > 0.5 * num


@pytest.mark.parametrize("policy", [ML_DECODER, INCREASING])
def test_nothing_waits_for_the_device(policy: Policy) -> None:
    """On the meta device, which has shapes and no values, asking for a value is an error, as is mixing devices."""
    images = torch.empty(5, 3, 12, 12, dtype=torch.uint8, device="meta")
    for name in policy:
        got = one_layer(policy, name, images, torch.full((5,), 0.5, dtype=torch.float64), torch.ones(5))
        assert got.device.type == "meta" and got.shape == images.shape
