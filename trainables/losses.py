"""Losses: the asymmetric loss (ASL, arXiv 2009.14119), binary cross-entropy and cross-entropy.

All are computed in float32 at least, whatever the logits' type and autocast say: in float16 the clamp before
the logarithm underflows, and 0 * log(0) is NaN. All sum over the batch by default, as the ML-Decoder recipe does,
so their gradient grows with it; data-parallel training divides it by the number of workers.

The first two judge each class by itself and take labels in [0, 1], the third takes one class an image, or rows
that sum to 1 where images were mixed. Shape letters: B images, K classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.config import LossConfig

Reduction = Literal["sum", "mean", "none"]

# As in the reference, so that losses compare: the logarithm of anything below is cut off here.
MIN_PROBABILITY = 1e-8


class AsymmetricLoss(nn.Module):
    """Asymmetric focusing and probability shifting: easy negatives count little, very easy ones nothing.

    With p the probability of the true side (for a negative: min(1 - sigmoid(logit) + clip, 1)), the loss of
    one label is -(1 - p)^gamma * log(p), gamma being gamma_pos or gamma_neg. `disable_focal_grad` treats
    (1 - p)^gamma as a constant weight in the backward pass. The defaults are the ML-Decoder recipe's, not the
    paper's.

    A soft label y (mixed images) weighs the two logarithms by y and 1 - y, its p is that mix of the two sides' and
    its gamma that of the two: the formula of the authors and of timm. PaddleClas takes the logarithm of the mixed
    p instead, and differs there only.

    Raises ValueError on a negative gamma, a clip outside [0, 1) or an unknown reduction.
    """

    def __init__(
        self,
        gamma_pos: float = 0.0,
        gamma_neg: float = 4.0,
        clip: float = 0.05,
        disable_focal_grad: bool = True,
        reduction: Reduction = "sum",
    ) -> None:
        super().__init__()
        if gamma_pos < 0 or gamma_neg < 0 or not 0 <= clip < 1:
            raise ValueError(
                f"gamma_pos >= 0, gamma_neg >= 0 and 0 <= clip < 1 must hold, but got gamma_pos={gamma_pos}, "
                f"gamma_neg={gamma_neg}, clip={clip}. The ML-Decoder recipe uses 0, 4 and 0.05."
            )
        self.gamma_pos = gamma_pos
        self.gamma_neg = gamma_neg
        self.clip = clip
        self.disable_focal_grad = disable_focal_grad
        self.reduction = _known_reduction(reduction)

    def forward(self, logits_BK: Tensor, labels_BK: Tensor) -> Tensor:
        """Logits and labels in [0, 1], both (B, K) of any dtype -> a scalar, or (B, K) for "none"."""
        logits_BK, labels_BK = _widen(logits_BK, labels_BK)
        scores_BK = logits_BK.sigmoid()
        negative_BK = (1 - scores_BK + self.clip).clamp(max=1)
        log_likelihood_BK = labels_BK * scores_BK.clamp(min=MIN_PROBABILITY).log()
        log_likelihood_BK = log_likelihood_BK + (1 - labels_BK) * negative_BK.clamp(min=MIN_PROBABILITY).log()
        if self.gamma_pos > 0 or self.gamma_neg > 0:
            true_side_BK = scores_BK * labels_BK + negative_BK * (1 - labels_BK)
            if self.disable_focal_grad:
                true_side_BK = true_side_BK.detach()
            gamma_BK = self.gamma_pos * labels_BK + self.gamma_neg * (1 - labels_BK)
            # Where this clamp acts the logarithm is 0; without it, gamma < 1 has an infinite slope there.
            focus_BK = (1 - true_side_BK).clamp(min=MIN_PROBABILITY).pow(gamma_BK)
            log_likelihood_BK = log_likelihood_BK * focus_BK
        return _reduce(-log_likelihood_BK, self.reduction)

    def extra_repr(self) -> str:
        return (
            f"gamma_pos={self.gamma_pos}, gamma_neg={self.gamma_neg}, clip={self.clip}, "
            f"disable_focal_grad={self.disable_focal_grad}, reduction={self.reduction!r}"
        )


class BinaryCrossEntropy(nn.Module):
    """Binary cross-entropy of every class, with the same contract as `AsymmetricLoss`.

    With `target_threshold`, labels above it count as 1 and the others as 0: both classes of a mixed image are
    right unless one is hardly there (arXiv 2110.00476). Raises ValueError on an unknown reduction.
    """

    def __init__(self, reduction: Reduction = "sum", *, target_threshold: float | None = None) -> None:
        super().__init__()
        self.target_threshold = target_threshold
        self.reduction = _known_reduction(reduction)

    def forward(self, logits_BK: Tensor, labels_BK: Tensor) -> Tensor:
        """Logits and labels in [0, 1], both (B, K) of any dtype -> a scalar, or (B, K) for "none"."""
        logits_BK, labels_BK = _widen(logits_BK, labels_BK)
        if self.target_threshold is not None:
            labels_BK = (labels_BK > self.target_threshold).to(labels_BK.dtype)
        return functional.binary_cross_entropy_with_logits(logits_BK, labels_BK, reduction=self.reduction)

    def extra_repr(self) -> str:
        return f"target_threshold={self.target_threshold}, reduction={self.reduction!r}"


class CrossEntropy(nn.Module):
    """Cross-entropy of the softmax over classes: of one class an image, or of a mix of them.

    `label_smoothing` spreads this share of each image's target over all K classes, the right one included.
    "mean" is over images. Raises ValueError on a smoothing outside [0, 1) or an unknown reduction.
    """

    def __init__(self, reduction: Reduction = "sum", *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"0 <= label_smoothing < 1 must hold, but got {label_smoothing}. 0.1 is common, 0 is none."
            )
        self.label_smoothing = label_smoothing
        self.reduction = _known_reduction(reduction)

    def forward(self, logits_BK: Tensor, labels_BK: Tensor) -> Tensor:
        """Logits and labels whose rows sum to 1, both (B, K) of any dtype -> a scalar, or (B,) for "none"."""
        logits_BK, labels_BK = _widen(logits_BK, labels_BK)
        return functional.cross_entropy(
            logits_BK, labels_BK, reduction=self.reduction, label_smoothing=self.label_smoothing
        )

    def extra_repr(self) -> str:
        return f"label_smoothing={self.label_smoothing}, reduction={self.reduction!r}"


def build_loss(loss_config: LossConfig) -> nn.Module:
    """The configured loss with sum reduction: (logits (B, K), labels (B, K)) -> scalar.

    The sum is divided where the whole batch is known: by images * `num_terms` for `loss.reduction=mean`.
    """
    if loss_config.name == "cross_entropy":
        return CrossEntropy(label_smoothing=loss_config.label_smoothing)
    if loss_config.name == "bce":
        return BinaryCrossEntropy(target_threshold=loss_config.target_threshold)
    return AsymmetricLoss(
        gamma_pos=loss_config.gamma_pos,
        gamma_neg=loss_config.gamma_neg,
        clip=loss_config.clip,
        disable_focal_grad=loss_config.disable_focal_grad,
    )


def num_terms(loss_config: LossConfig, num_classes: int) -> int:
    """How many terms an image adds to the loss, and so to the denominator of its mean."""
    return 1 if loss_config.name == "cross_entropy" else num_classes


def _known_reduction(reduction: Reduction) -> Reduction:
    if reduction not in ("sum", "mean", "none"):
        raise ValueError(f"reduction must be one of 'sum', 'mean', 'none', but got {reduction!r}.")
    return reduction


def _widen(logits_BK: Tensor, labels_BK: Tensor) -> tuple[Tensor, Tensor]:
    if logits_BK.shape != labels_BK.shape:
        raise ValueError(
            f"logits and labels must have the same shape, but got {tuple(logits_BK.shape)} and "
            f"{tuple(labels_BK.shape)}. Labels have one column per class."
        )
    wide = torch.promote_types(logits_BK.dtype, torch.float32)
    return logits_BK.to(wide), labels_BK.to(wide)


def _reduce(loss_BK: Tensor, reduction: Reduction) -> Tensor:
    if reduction == "none":
        return loss_BK
    return loss_BK.sum() if reduction == "sum" else loss_BK.mean()
