"""What training images go through on the device: batches of uint8 in, batches of uint8 out, each image otherwise.

In order: random resized crop, mirror image, cutout, RandAugment (`trainables.rand_augment`); then, on float
images and their labels, mixup or cutmix. What chance decides comes from torch's default generator on the CPU, so
that a seed fixes it whatever the device. Names that end in _ change their images in place.

Shape letters: B images, C = 3 channels, H x W pixels, K classes, N of the images of a batch, T tries.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torchvision.transforms import v2

from trainables import rand_augment
from trainables.config import AugmentConfig
from trainables.image_moves import crop
from trainables.image_ops import change_, onto, paint

CROP_TRIES = 10


def build_augment(config: AugmentConfig) -> Callable[[Tensor], Tensor]:
    """uint8 (B, 3, H, W) -> a new batch of the same shape and device; the batch itself where nothing is asked for.

    The result raises ValueError on anything but uint8 batches of three channels.
    """
    steps_: list[Callable[[Tensor], None]] = []
    if config.crop == "random_resized":
        steps_.append(partial(_crop_, scale=config.crop_scale))
    if config.flip:
        steps_.append(partial(_flip_, probability=config.flip))
    if config.cutout and config.cutout_probability:
        steps_.append(partial(_cutout_, share=config.cutout, probability=config.cutout_probability))
    if config.rand_augment == "ml_decoder":
        steps_.append(rand_augment.ml_decoder_)
    elif config.rand_augment == "increasing":
        magnitude, std = config.rand_magnitude, config.rand_magnitude_std
        steps_.append(partial(rand_augment.increasing_, magnitude=magnitude, magnitude_std=std))

    def augment(images_BCHW: Tensor) -> Tensor:
        if images_BCHW.dtype != torch.uint8 or images_BCHW.ndim != 4 or images_BCHW.shape[1] != 3:
            raise ValueError(
                f"images must be uint8 (B, 3, H, W), but got {images_BCHW.dtype} {tuple(images_BCHW.shape)}. "
                f"Augment before normalising."
            )
        if not steps_:
            return images_BCHW
        images_BCHW = images_BCHW.clone(memory_format=torch.contiguous_format)
        for step_ in steps_:
            step_(images_BCHW)
        return images_BCHW

    return augment


def mix(images_BCHW: Tensor, labels_BK: Tensor, config: AugmentConfig) -> tuple[Tensor, Tensor]:
    """Mixup (arXiv 1710.09412) or cutmix (arXiv 1905.04899) of each image with the one before it in the batch.

    Float images (B, 3, H, W) and labels (B, K) -> new ones, or themselves where the configuration asks for
    neither. One share a batch, Beta distributed; where both are asked for, one or the other with equal chance.
    With repeated augmentation the batch is shuffled first, and stays so: the one before may be the same image.
    """
    if not config.mixup and not config.cutmix:
        return images_BCHW, labels_BK
    if config.repeats > 1:
        order_B = onto(images_BCHW, torch.randperm(len(images_BCHW)))
        images_BCHW, labels_BK = images_BCHW[order_B], labels_BK[order_B]
    cuts = bool(torch.rand(()) < 0.5) if config.mixup and config.cutmix else bool(config.cutmix)
    mixer = v2.CutMix(alpha=config.cutmix) if cuts else v2.MixUp(alpha=config.mixup)
    return mixer(images_BCHW, labels_BK)


def resize(images_BCHW: Tensor, side: int) -> Tensor:
    """uint8 images squashed to side x side, bilinear with antialiasing; themselves where they have that size."""
    if images_BCHW.shape[-2:] == (side, side):
        return images_BCHW
    return v2.functional.resize(images_BCHW, [side, side], antialias=True)


def _crop_(images_BCHW: Tensor, scale: tuple[float, float]) -> None:
    num, _, height, width = images_BCHW.shape
    box_B22 = _crop_boxes(num, height, width, scale)
    change_(images_BCHW, torch.arange(num), lambda images_NCHW, rows_N: crop(images_NCHW, box_B22[rows_N]))


def _crop_boxes(num: int, height: int, width: int, scale: tuple[float, float]) -> Tensor:
    """A box [[top, bottom], [left, right]] for each image, drawn as torchvision's RandomResizedCrop does.

    Area uniform in `scale`, the logarithm of width to height uniform between 3/4 and 4/3, ten tries to find one
    that fits in the image; the whole image after that (torchvision's choice where it is a square).
    """
    area_TN = torch.empty(CROP_TRIES, num).uniform_(*scale) * (height * width)
    ratio_TN = torch.empty(CROP_TRIES, num).uniform_(math.log(3 / 4), math.log(4 / 3)).exp()
    size_2TN = torch.stack((area_TN / ratio_TN, area_TN * ratio_TN)).sqrt().round().long()
    whole_21 = torch.tensor([[height], [width]])
    fits_TN = ((size_2TN > 0) & (size_2TN <= whole_21[..., None])).all(dim=0)
    first_N = fits_TN.int().argmax(dim=0)
    size_2N = torch.where(fits_TN.any(dim=0), size_2TN[:, first_N, torch.arange(num)], whole_21)
    start_2N = (torch.rand(2, num) * (whole_21 - size_2N + 1)).long()
    return torch.stack((start_2N, start_2N + size_2N), dim=-1).transpose(0, 1)


def _flip_(images_BCHW: Tensor, probability: float) -> None:
    change_(images_BCHW, _some(len(images_BCHW), probability), lambda images_NCHW, _: images_NCHW.flip(-1))


def _cutout_(images_BCHW: Tensor, share: float, probability: float) -> None:
    """One rectangle of a random colour in some images, as the ML-Decoder authors' `CutoutPIL` draws it.

    Its sides are `share` of the image's. The middle lies anywhere, so that the border may clip it; Pillow's
    rectangles contain both ends, so that a side of 112 covers 113 pixels.
    """
    num, _, *sizes = images_BCHW.shape
    middle_B2 = torch.stack([torch.randint(size, (num,)) for size in sizes], dim=1)
    half_2 = torch.tensor([int(share * size + 0.5) // 2 for size in sizes])
    box_B22 = torch.stack((middle_B2 - half_2, middle_B2 + half_2 + 1), dim=2)
    color_B3 = torch.randint(256, (num, 3))
    change_(
        images_BCHW,
        _some(num, probability),
        lambda images_NCHW, rows_N: paint(images_NCHW, box_B22[rows_N], color_B3[rows_N]),
    )


def _some(num: int, probability: float) -> Tensor:
    """Rows of a batch, each with this probability."""
    return (torch.rand(num) < probability).nonzero()[:, 0]
