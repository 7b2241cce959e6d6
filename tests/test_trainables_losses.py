"""The losses against timm's and PyTorch's own, and where half precision breaks."""

from __future__ import annotations

import pytest
import torch
from timm import loss as timm_loss
from torch import Tensor, nn
from torch.nn import functional

from trainables.config import LossConfig
from trainables.losses import AsymmetricLoss, BinaryCrossEntropy, CrossEntropy, Reduction, build_loss, num_terms

torch.set_num_threads(1)


def _batch(scale: float = 4.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(32, 20, generator=generator) * scale
    return logits, (torch.rand(32, 20, generator=generator) < 0.2).float()


def _mixed(num_images: int = 32, num_classes: int = 20) -> tuple[Tensor, Tensor]:
    """Logits, and one class an image in half of the images, two in the other half."""
    generator = torch.Generator().manual_seed(1)
    one, other = torch.randint(num_classes, (2, num_images), generator=generator)
    share = torch.where(torch.arange(num_images) % 2 == 0, 1.0, torch.rand(num_images, generator=generator))
    targets = torch.zeros(num_images, num_classes)
    targets.scatter_add_(1, one[:, None], share[:, None])
    targets.scatter_add_(1, other[:, None], 1 - share[:, None])
    return torch.randn(num_images, num_classes, generator=generator) * 4, targets


def _value_and_gradient(loss: nn.Module, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    value = loss(logits, labels).sum()
    return value.detach(), torch.autograd.grad(value, logits)[0]


def _assert_equal(loss: nn.Module, oracle: nn.Module, logits: Tensor, labels: Tensor) -> None:
    got, expected = (_value_and_gradient(each, logits, labels) for each in (loss, oracle))
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("scale", [4.0, 30.0])
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("disable_focal_grad", [True, False])
@pytest.mark.parametrize("gammas", [(0.0, 4.0), (1.0, 4.0), (0.0, 0.0), (2.0, 2.0)])
@pytest.mark.parametrize("clip", [0.05, 0.0])
def test_asymmetric_loss_equals_timms(
    gammas: tuple[float, float], clip: float, disable_focal_grad: bool, reduction: Reduction, scale: float, soft: bool
) -> None:
    oracle = timm_loss.AsymmetricLossMultiLabel(
        gamma_pos=gammas[0],
        gamma_neg=gammas[1],
        clip=clip,
        disable_torch_grad_focal_loss=disable_focal_grad,
        reduction=reduction,
    )
    loss = AsymmetricLoss(*gammas, clip, disable_focal_grad, reduction)
    logits, labels = _batch(scale)
    if soft:
        labels = torch.rand(labels.shape, generator=torch.Generator().manual_seed(2))
    _assert_equal(loss, oracle, logits, labels)


def test_the_defaults_are_the_ml_decoder_recipe() -> None:
    oracle = timm_loss.AsymmetricLossMultiLabel(4, 0, 0.05, disable_torch_grad_focal_loss=True, reduction="sum")
    for loss in (AsymmetricLoss(), build_loss(LossConfig())):
        torch.testing.assert_close(loss(*_batch()), oracle(*_batch()))


@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("threshold", [None, 0.2, 0.5])
def test_binary_cross_entropy_equals_timms_on_mixed_targets(threshold: float | None, reduction: Reduction) -> None:
    loss = BinaryCrossEntropy(reduction, target_threshold=threshold)
    oracle = timm_loss.BinaryCrossEntropy(0.0, target_threshold=threshold, reduction=reduction)
    _assert_equal(loss, oracle, *_mixed())


def test_a_target_at_the_threshold_counts_as_zero() -> None:
    loss = BinaryCrossEntropy(target_threshold=0.25)
    logits = torch.tensor([[1.0, -2.0, 3.0]])
    expected = BinaryCrossEntropy()(logits, torch.tensor([[0.0, 1.0, 0.0]]))
    assert loss(logits, torch.tensor([[0.25, 0.5, 0.0]])) == expected


def test_cross_entropy_equals_timms_on_mixed_targets() -> None:
    _assert_equal(CrossEntropy("mean"), timm_loss.SoftTargetCrossEntropy(), *_mixed())


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
def test_cross_entropy_of_one_hot_targets_is_that_of_classes(reduction: Reduction, label_smoothing: float) -> None:
    logits, _ = _batch()
    classes = torch.arange(32) % 20
    loss = CrossEntropy(reduction, label_smoothing=label_smoothing)
    oracle = timm_loss.LabelSmoothingCrossEntropy(label_smoothing)
    each = torch.stack([oracle(logits[i : i + 1], classes[i : i + 1]) for i in range(32)])
    expected = {"sum": each.sum(), "mean": each.mean(), "none": each}[reduction]
    torch.testing.assert_close(loss(logits, functional.one_hot(classes, 20)), expected)


LOSSES = [
    AsymmetricLoss(),
    AsymmetricLoss(1, 2, 0.1, False),
    BinaryCrossEntropy(),
    BinaryCrossEntropy(target_threshold=0.2),
    CrossEntropy(),
    CrossEntropy(label_smoothing=0.1),
]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_and_computed_in_float32(loss: nn.Module, dtype: torch.dtype) -> None:
    logits = torch.tensor([[-60.0, -20.0, -3.0, 0.0, 3.0, 20.0, 60.0]], dtype=dtype).repeat(2, 1)
    labels = torch.tensor([[0.0], [1.0]]).repeat(1, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, gradient = _value_and_gradient(loss, logits, labels)
    assert value.dtype == torch.float32 and value.isfinite() and gradient.isfinite().all()
    torch.testing.assert_close(value, loss(logits.float(), labels))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 4.0])
def test_gradients_are_finite_for_every_gamma(gamma: float) -> None:
    loss = AsymmetricLoss(gamma, gamma, disable_focal_grad=False)
    logits = torch.linspace(-100, 100, 41).repeat(2, 1)
    labels = torch.tensor([[0.0], [1.0]]).expand_as(logits)
    assert _value_and_gradient(loss, logits, labels)[1].isfinite().all()


def test_negatives_below_the_margin_cost_nothing() -> None:
    logits = torch.tensor([[0.049, 0.051]]).logit()
    value, gradient = _value_and_gradient(AsymmetricLoss(gamma_neg=0.0), logits, torch.zeros(1, 2))
    assert gradient[0, 0] == 0 and gradient[0, 1] > 0 and value > 0


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float64])
@pytest.mark.parametrize("name", ["asymmetric", "bce", "cross_entropy"])
def test_labels_may_have_any_type(name: str, dtype: torch.dtype) -> None:
    loss = build_loss(LossConfig.model_validate({"name": name}))
    logits, labels = _batch()
    assert torch.equal(loss(logits, labels.to(dtype)), loss(logits, labels))


def test_build_loss_follows_the_configuration() -> None:
    logits, labels = _batch()
    expected = functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    torch.testing.assert_close(build_loss(LossConfig(name="bce"))(logits, labels), expected)
    torch.testing.assert_close(
        build_loss(LossConfig(name="cross_entropy"))(logits, labels), CrossEntropy()(logits, labels)
    )
    config = LossConfig(gamma_pos=1.0, gamma_neg=2.0, clip=0.1, disable_focal_grad=False)
    assert str(build_loss(config)) == str(AsymmetricLoss(1.0, 2.0, 0.1, False))
    config = LossConfig(name="bce", target_threshold=0.2)
    assert str(build_loss(config)) == str(BinaryCrossEntropy(target_threshold=0.2))
    config = LossConfig(name="cross_entropy", label_smoothing=0.1)
    assert str(build_loss(config)) == str(CrossEntropy(label_smoothing=0.1))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("name", ["asymmetric", "bce", "cross_entropy"])
def test_the_sum_over_images_and_terms_is_the_mean(name: str, reduction: str) -> None:
    config = LossConfig.model_validate({"name": name, "reduction": reduction})
    logits, targets = _mixed()
    mean = {"asymmetric": AsymmetricLoss, "bce": BinaryCrossEntropy, "cross_entropy": CrossEntropy}[name](
        reduction="mean"
    )
    total = build_loss(config)(logits, targets)
    torch.testing.assert_close(total / (32 * num_terms(config, 20)), mean(logits, targets))


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="same shape"):
        AsymmetricLoss()(torch.zeros(4, 3), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="reduction must be one of"):
        BinaryCrossEntropy("batchmean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"label_smoothing < 1 must hold, but got 1\.0"):
        CrossEntropy(label_smoothing=1.0)
    with pytest.raises(ValueError, match=r"got gamma_pos=0\.0, gamma_neg=-1"):
        AsymmetricLoss(gamma_neg=-1)
