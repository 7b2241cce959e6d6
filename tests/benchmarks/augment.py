"""The ML-Decoder recipe's augmentation: ours, a batch at a time, against Pillow and torchvision, image by image.

    python -m tests.benchmarks.augment [--batch-size 56] [--sizes 224 448] [--rounds 9] [--threads 1]

All start from a uint8 batch (B, 3, H, W) and end with one, drawing included: a rectangle of half the side in a
random colour, then one pair of RandAugment's 15 operations, each with probability one half (the means are over
`--rounds` batches). Pillow is as the recipe has it, in the main process: what one core of a data loader does;
`ready images` leaves out the way from the tensor to Pillow and back. torchvision has the same operations as tensor
functions, but no bicubic shear: its is bilinear. Where there is a GPU ours and torchvision's run there.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections.abc import Callable, Sequence

import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from tests.benchmarks.rounds import machine_line, measure, others_line
from tests.pillow_helpers import photographs, picture, pixels
from trainables.augment import build_augment
from trainables.config import AugmentConfig

OURS, PILLOW, READY, TORCHVISION = "ours, batch", "Pillow", "Pillow, ready images", "torchvision v2"
GREY = (128, 128, 128)

PILLOW_OPERATIONS: dict[str, Callable[[Image.Image, float, int], Image.Image]] = {
    "autocontrast": lambda image, level, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, level, sign: ImageOps.equalize(image),
    "invert": lambda image, level, sign: ImageOps.invert(image),
    "brightness": lambda image, level, sign: ImageEnhance.Brightness(image).enhance(1 + 0.9 * level * sign),
    "color": lambda image, level, sign: ImageEnhance.Color(image).enhance(1 + 0.9 * level * sign),
    "contrast": lambda image, level, sign: ImageEnhance.Contrast(image).enhance(1 + 0.9 * level * sign),
    "sharpness": lambda image, level, sign: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * level * sign),
    "posterize": lambda image, level, sign: ImageOps.posterize(image, round(8 - 4 * level)),
    "solarize": lambda image, level, sign: ImageOps.solarize(image, 256 - 256 * level),
    "shear_x": lambda image, level, sign: moved(image, (1, 0.3 * level * sign, 0, 0, 1, 0), Image.Resampling.BICUBIC),
    "shear_y": lambda image, level, sign: moved(image, (1, 0, 0, 0.3 * level * sign, 1, 0), Image.Resampling.BICUBIC),
    "translate_x": lambda image, level, sign: moved(image, (1, 0, 150 / 331 * level * sign * image.width, 0, 1, 0)),
    "translate_y": lambda image, level, sign: moved(image, (1, 0, 0, 0, 1, 150 / 331 * level * sign * image.height)),
    "rotate": lambda image, level, sign: image.rotate(30 * level, fillcolor=GREY),
    "cutout": lambda image, level, sign: square(image, round(20 * level), (125, 122, 113)),
}

TORCHVISION_OPERATIONS: dict[str, Callable[[Tensor, float, int], Tensor]] = {
    "autocontrast": lambda image, level, sign: vision.autocontrast(image),
    "equalize": lambda image, level, sign: vision.equalize(image),
    "invert": lambda image, level, sign: vision.invert(image),
    "brightness": lambda image, level, sign: vision.adjust_brightness(image, 1 + 0.9 * level * sign),
    "color": lambda image, level, sign: vision.adjust_saturation(image, 1 + 0.9 * level * sign),
    "contrast": lambda image, level, sign: vision.adjust_contrast(image, 1 + 0.9 * level * sign),
    "sharpness": lambda image, level, sign: vision.adjust_sharpness(image, 1 + 0.9 * level * sign),
    "posterize": lambda image, level, sign: vision.posterize(image, round(8 - 4 * level)),
    "solarize": lambda image, level, sign: vision.solarize(image, 255 - 255 * level),
    "shear_x": lambda image, level, sign: affine(image, shear=(math.degrees(math.atan(0.3 * level * sign)), 0.0)),
    "shear_y": lambda image, level, sign: affine(image, shear=(0.0, math.degrees(math.atan(0.3 * level * sign)))),
    "translate_x": lambda image, level, sign: affine(image, translate=(150 / 331 * level * sign * image.shape[-1], 0)),
    "translate_y": lambda image, level, sign: affine(image, translate=(0, 150 / 331 * level * sign * image.shape[-2])),
    "rotate": lambda image, level, sign: vision.rotate(image, 30 * level, fill=list(GREY)),
    "cutout": lambda image, level, sign: erased(image, round(20 * level), (125, 122, 113)),
}


def moved(
    image: Image.Image, matrix: tuple[float, ...], resample: Image.Resampling = Image.Resampling.NEAREST
) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=GREY)


def square(image: Image.Image, side: int, color: tuple[int, ...]) -> Image.Image:
    """Drawn into the image, the middle anywhere."""
    x, y = random.randrange(image.width), random.randrange(image.height)
    box = (max(0, x - side // 2), max(0, y - side // 2), x + side // 2, y + side // 2)
    ImageDraw.Draw(image).rectangle(box, fill=color)
    return image


def affine(image: Tensor, translate: tuple[float, float] = (0, 0), shear: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    mode = vision.InterpolationMode.BILINEAR if any(shear) else vision.InterpolationMode.NEAREST
    return vision.affine(image, 0.0, list(translate), 1.0, list(shear), mode, fill=list(GREY), center=[0.0, 0.0])


def erased(image: Tensor, side: int, color: tuple[int, ...]) -> Tensor:
    height, width = image.shape[-2:]
    x, y = random.randrange(width), random.randrange(height)
    top, left = max(0, y - side // 2), max(0, x - side // 2)
    fill = torch.tensor(color, dtype=torch.uint8).to(image.device, non_blocking=True)[:, None, None]
    return vision.erase(image, top, left, y + side // 2 - top, x + side // 2 - left, fill)


def random_color() -> tuple[int, ...]:
    return tuple(random.randrange(256) for _ in range(3))


def pair() -> list[tuple[str, float, int]]:
    """What happens to one image: names, levels and signs."""
    drawn = [(random.choice(list(PILLOW_OPERATIONS)), random.randint(1, 9) / 9, random.choice((-1, 1))) for _ in "12"]
    return [one for one in drawn if random.random() < 0.5]


def with_pillow(image: Image.Image) -> Image.Image:
    image = square(image, int(0.5 * image.width + 0.5), random_color())
    for name, level, sign in pair():
        image = PILLOW_OPERATIONS[name](image, level, sign)
    return image


def by_pillow(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 3, H, W), through an image for each."""
    return torch.stack([pixels(with_pillow(picture(image))) for image in images])


def with_torchvision(image: Tensor) -> Tensor:
    image = erased(image, int(0.5 * image.shape[-1] + 0.5), random_color())
    for name, level, sign in pair():
        image = TORCHVISION_OPERATIONS[name](image, level, sign)
    return image


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.augment", description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=56)
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 448])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    augment = build_augment(AugmentConfig(cutout=0.5, rand_augment="ml_decoder"))
    rates: dict[str, list[float]] = {}
    shares: list[float | None] = []
    for side in arguments.sizes:
        random.seed(0)
        torch.manual_seed(0)
        images = photographs(arguments.batch_size, side)
        on_device = images.to(device)
        pictures = [picture(image) for image in images]
        sides: dict[str, Callable[[], object]] = {
            f"{OURS} ({device.type})": lambda on=on_device: augment(on),
            f"{TORCHVISION} ({device.type})": lambda on=on_device: torch.stack([with_torchvision(one) for one in on]),
            PILLOW: lambda on=images: by_pillow(on),
            READY: lambda on=pictures: [with_pillow(one.copy()) for one in on],
        }
        measured = measure(sides, rounds=arguments.rounds, device=device)
        shares.append(measured.others)
        for name, seconds in measured.times.items():
            rates.setdefault(name, []).append(arguments.batch_size * len(seconds) / sum(seconds))
    threads = f"{arguments.threads} thread" + ("s" if arguments.threads > 1 else "")
    print(f"images/s, batches of {arguments.batch_size}, {threads} (Pillow: 1 thread)")
    print(f"{'':28}" + "".join(f"{f'{side} px':>10}" for side in arguments.sizes))
    for name, values in rates.items():
        print(f"{name:28}" + "".join(f"{value:10,.0f}" for value in values))
    print("\n".join([*others_line(shares), machine_line(device, ("torch", "torchvision", "pillow"))]))


if __name__ == "__main__":
    main(sys.argv[1:])
