"""Mixup and cutmix: labels mix as pixels do, shares and turns by their distributions, copies apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainables.augment import mix
from trainables.config import AugmentConfig

torch.set_num_threads(1)


def numbered(num: int, classes: int, size: int = 24) -> tuple[Tensor, Tensor]:
    """Images of one value each, 0 to num - 1, and one-hot labels of the same numbers."""
    images = torch.arange(float(num))[:, None, None, None].expand(num, 3, size, size).contiguous()
    return images, torch.eye(num, classes)


@pytest.mark.parametrize("num", [1, 2, 5, 8])
@pytest.mark.parametrize("seed", range(6))
def test_mixup_mixes_labels_as_it_mixes_pixels(num: int, seed: int) -> None:
    images, labels = numbered(num, 10)
    before = images.clone(), labels.clone()
    torch.manual_seed(seed)
    mixed, targets = mix(images, labels, AugmentConfig(mixup=1.0))
    torch.testing.assert_close(targets @ torch.arange(10.0), mixed[:, 0, 0, 0])  # the share's only unknown
    torch.testing.assert_close(targets.sum(1), torch.ones(num))
    assert (mixed == mixed[:, :1, :1, :1]).all()
    assert torch.equal(images, before[0]) and torch.equal(labels, before[1])
    if num > 1:
        shares = targets.diagonal()
        torch.testing.assert_close(shares, shares[:1].expand(num))  # one share a batch
        assert (targets > 0).sum() == 2 * num


@pytest.mark.parametrize("num", [1, 2, 5, 8])
@pytest.mark.parametrize("seed", range(6))
def test_cutmixs_share_is_the_area_that_it_pastes(num: int, seed: int) -> None:
    images, labels = numbered(num, 10)
    before = images.clone()
    torch.manual_seed(seed)
    mixed, targets = mix(images, labels, AugmentConfig(cutmix=1.0))
    for number in range(num):
        kept = (mixed[number] == number).float().mean() if num > 1 else torch.tensor(1.0)
        torch.testing.assert_close(targets[number, number], kept)
    torch.testing.assert_close(targets.sum(1), torch.ones(num))
    assert set(mixed.flatten().tolist()) <= set(range(num)) and torch.equal(images, before)


def test_many_labels_of_one_image_mix_too() -> None:
    labels = torch.tensor([[1.0, 1, 0, 1], [0, 1, 1, 0]])
    torch.manual_seed(1)
    _, targets = mix(torch.zeros(2, 3, 8, 8), labels, AugmentConfig(mixup=0.4))
    share = targets[0, 0]
    torch.testing.assert_close(targets, share * labels + (1 - share) * labels.flip(0))


def test_mixup_and_cutmix_take_turns_by_chance() -> None:
    images, labels = numbered(4, 4, size=16)
    torch.manual_seed(0)
    mixes = [mix(images, labels, AugmentConfig(mixup=1.0, cutmix=1.0))[0] for _ in range(400)]
    pasted = [bool((one == one.round()).all()) for one in mixes]
    assert abs(sum(pasted) / 400 - 0.5) < 0.1


def test_shares_follow_their_beta_distribution() -> None:
    images, labels = numbered(2, 2, size=8)
    torch.manual_seed(0)
    shares = torch.stack([mix(images, labels, AugmentConfig(mixup=0.1))[1][0, 0] for _ in range(800)])
    expected = torch.distributions.Beta(0.1, 0.1).sample((20_000,))
    assert abs(shares.mean() - 0.5) < 0.05 and abs(shares.std() - expected.std()) < 0.03


def test_copies_of_an_image_are_not_mixed_with_each_other() -> None:
    repeats, num = 3, 96
    images, labels = numbered(num // repeats, num // repeats, size=8)
    images, labels = (one.repeat_interleave(repeats, dim=0) for one in (images, labels))
    torch.manual_seed(0)
    mixed, targets = mix(images, labels, AugmentConfig(mixup=8.0, repeats=repeats))
    assert (targets.max(1).values == 1).float().mean() < 0.15  # 2 of 3, side by side
    torch.testing.assert_close(targets @ torch.arange(float(num // repeats)), mixed[:, 0, 0, 0])
    torch.testing.assert_close(targets.sum(0), labels.sum(0))
