"""From a batch of the feed to what a model takes, on the model's device: uint8 over the wire, everything else there.

Shape letters: B images, K classes, W width of a word vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainables.augment import build_augment, mix, resize
from trainables.config import AugmentConfig, WordsConfig
from trainables.word_decoder import augment_words


@dataclass(frozen=True)
class Pixels:
    """uint8 images (B, 3, H, W) -> the device, and normalised there. `mean` and `std` are of RGB in [0, 1]."""

    device: torch.device
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    memory_format: torch.memory_format = torch.contiguous_format

    def move(self, image: np.ndarray) -> Tensor:
        """To the device, still uint8."""
        return torch.from_numpy(image).to(self.device, non_blocking=True)

    def normalise(self, image: Tensor) -> Tensor:
        """uint8 -> float32."""
        mean, inverse_std = self._statistics
        return ((image - mean) * inverse_std).contiguous(memory_format=self.memory_format)

    @cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) * 255 for v in (self.mean, self.std))
        return mean, 1 / std

    def __call__(self, image: np.ndarray) -> Tensor:
        """What a model is judged on: no augmentation."""
        return self.normalise(self.move(image))


@dataclass(frozen=True)
class Vocabulary:
    """Word vectors (K, W) of all classes, and which of these no training image is labelled with."""

    vectors: np.ndarray
    unseen: tuple[int, ...] = ()

    @property
    def seen(self) -> np.ndarray:
        """Indices of the classes that are trained."""
        return np.setdiff1d(np.arange(len(self.vectors)), self.unseen)


@dataclass(frozen=True)
class TrainInputs:
    """A training batch: resized, augmented, normalised and mixed images; labels to match; words where words are asked.

    `size`: epoch -> side in pixels. `words` (K, W): the model's own, of unit length; `seen` (S,): those it trains on.
    """

    pixels: Pixels
    augment: AugmentConfig
    size: Callable[[int], int]
    word_config: WordsConfig
    words: Tensor | None = None
    seen: Tensor | None = None

    def __call__(self, batch: Mapping[str, Any], epoch: int) -> tuple[tuple[Tensor, ...], Tensor]:
        """The model's arguments, and labels (B, K)."""
        side, image = self.size(epoch), self.pixels.move(batch["image"])
        if self.augment.crop == "none":  # a crop is taken from all pixels that there are
            image = resize(image, side)
        image = resize(build_augment(self.augment)(image), side)
        labels = torch.as_tensor(batch["labels"]).to(self.pixels.device, non_blocking=True).float()
        image, labels = mix(self.pixels.normalise(image), labels, self.augment)
        if self.words is None or self.seen is None:
            return (image,), labels
        words, labels = augment_words(self.words[self.seen], labels[:, self.seen], self.word_config)
        return (image, words), labels
