"""The losses against timm's and PyTorch's own, and where half precision breaks."""

from __future__ import annotations

import pytest
import torch
from timm.loss import AsymmetricLossMultiLabel
from torch import Tensor, nn
from torch.nn import functional

from trainables.config import LossConfig
from trainables.losses import AsymmetricLoss, BinaryCrossEntropy, Reduction, build_loss

torch.set_num_threads(1)


def _batch(scale: float = 4.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(32, 20, generator=generator) * scale
    return logits, (torch.rand(32, 20, generator=generator) < 0.2).float()


def _value_and_gradient(loss: nn.Module, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    value = loss(logits, labels).sum()
    return value.detach(), torch.autograd.grad(value, logits)[0]


@pytest.mark.parametrize("scale", [4.0, 30.0])
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("disable_focal_grad", [True, False])
@pytest.mark.parametrize("gammas", [(0.0, 4.0), (1.0, 4.0), (0.0, 0.0), (2.0, 2.0)])
@pytest.mark.parametrize("clip", [0.05, 0.0])
def test_asymmetric_loss_equals_timms(
    gammas: tuple[float, float], clip: float, disable_focal_grad: bool, reduction: Reduction, scale: float
) -> None:
    oracle = AsymmetricLossMultiLabel(
        gamma_pos=gammas[0],
        gamma_neg=gammas[1],
        clip=clip,
        disable_torch_grad_focal_loss=disable_focal_grad,
        reduction=reduction,
    )
    loss = AsymmetricLoss(*gammas, clip, disable_focal_grad, reduction)
    logits, labels = _batch(scale)
    for got, expected in zip(
        _value_and_gradient(loss, logits, labels), _value_and_gradient(oracle, logits, labels), strict=True
    ):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


def test_the_defaults_are_the_ml_decoder_recipe() -> None:
    oracle = AsymmetricLossMultiLabel(4, 0, 0.05, disable_torch_grad_focal_loss=True, reduction="sum")
    for loss in (AsymmetricLoss(), build_loss(LossConfig())):
        torch.testing.assert_close(loss(*_batch()), oracle(*_batch()))


@pytest.mark.parametrize("loss", [AsymmetricLoss(), AsymmetricLoss(1, 2, 0.1, False), BinaryCrossEntropy()])
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
@pytest.mark.parametrize("name", ["asymmetric", "bce"])
def test_labels_may_have_any_type(name: str, dtype: torch.dtype) -> None:
    loss = build_loss(LossConfig.model_validate({"name": name}))
    logits, labels = _batch()
    assert torch.equal(loss(logits, labels.to(dtype)), loss(logits, labels))


def test_build_loss_follows_the_configuration() -> None:
    logits, labels = _batch()
    expected = functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    torch.testing.assert_close(build_loss(LossConfig(name="bce"))(logits, labels), expected)
    config = LossConfig(gamma_pos=1.0, gamma_neg=2.0, clip=0.1, disable_focal_grad=False)
    assert str(build_loss(config)) == str(AsymmetricLoss(1.0, 2.0, 0.1, False))


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="same shape"):
        AsymmetricLoss()(torch.zeros(4, 3), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="reduction must be one of"):
        BinaryCrossEntropy("batchmean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"got gamma_pos=0\.0, gamma_neg=-1"):
        AsymmetricLoss(gamma_neg=-1)
