"""The layer in the CPU's fastest operations, in training too: against timm's head with the same dropout masks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.benchmarks import timm_head
from trainables import cpu_decoder
from trainables.convert_heads import to_timm
from trainables.ml_decoder import MLDecoder

torch.set_num_threads(1)

BATCH, DIM, HEADS, SHARE = 3, 64, 8, 0.25


def _head(query_num: int, dropout: float = 0.0) -> MLDecoder:
    torch.manual_seed(0)
    head = MLDecoder(2 * query_num, query_num=query_num, in_features=24, embed_dim=DIM, dropout=dropout)
    for parameter in head.parameters():  # biases and norms away from 0 and 1, so that none can be forgotten
        parameter.data.add_(torch.randn(parameter.shape), alpha=0.1)
    return head.double()


def _mask(shape: Sequence[int]) -> Tensor:
    """Factors that depend on the shape alone, so that both sides drop the same."""
    generator = torch.Generator().manual_seed(math.prod(shape))
    return (torch.rand(tuple(shape), generator=generator, dtype=torch.float64) > SHARE).double() / (1 - SHARE)


class _Masked(nn.Module):
    """timm's dropout on (Q, B, D)."""

    def forward(self, x_QBD: Tensor) -> Tensor:
        num_queries, batch, width = x_QBD.shape
        return x_QBD * _mask((batch, num_queries, width)).transpose(0, 1)


@pytest.mark.parametrize("query_num", [4, 20])
@pytest.mark.parametrize("shape", [(BATCH, 24, 3, 2), (BATCH, 5, 24), (BATCH, 1, 24)])
def test_a_training_step_equals_timms_with_the_same_masks(
    query_num: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    head = _head(query_num, SHARE).train()
    oracle = timm_head.from_ours(head).double().train()
    oracle.load_state_dict(to_timm(head.state_dict()))
    layer = oracle.decoder.layers[0]
    layer.dropout, layer.dropout1, layer.dropout2, layer.dropout3 = (_Masked() for _ in range(4))

    def attention_dropout(weights_BnQT: Tensor, p: float, training: bool = True) -> Tensor:
        return weights_BnQT * _mask((BATCH, HEADS, *weights_BnQT.shape[1:])).view_as(weights_BnQT)

    monkeypatch.setattr(cpu_decoder, "_noise", lambda shape, share, dtype: _mask(shape))
    monkeypatch.setattr(functional, "dropout", attention_dropout)  # what torch's MultiheadAttention calls
    ours = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    logits, expected = head(ours), oracle(theirs)
    torch.testing.assert_close(logits, expected, atol=1e-9, rtol=1e-9)
    for some in (logits, expected):
        some.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-9, rtol=1e-9)
    gradients = to_timm({name: p.grad for name, p in head.named_parameters()} | {"queries": head.queries})
    for name, parameter in oracle.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-9, rtol=1e-9, msg=name)


@pytest.mark.parametrize("query_num, absorbed", [(4, True), (20, False)])
@pytest.mark.parametrize("batch", [1, BATCH, 70])
def test_evaluation_equals_the_plain_layer(
    query_num: int, absorbed: bool, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, features = _head(query_num).eval(), torch.randn(batch, 24, 3, 2, dtype=torch.float64, requires_grad=True)
    assert (cpu_decoder._project(head, head.queries, batch)[1].ndim == 2) == absorbed
    leaves = [features, *head.parameters()]
    results = []
    for applies in (cpu_decoder.applies, lambda features: False):
        monkeypatch.setattr(cpu_decoder, "applies", applies)
        logits = head(features)
        gradients = torch.autograd.grad(logits.square().sum(), leaves)
        with torch.inference_mode():
            results.append((logits.detach(), *gradients, head(features)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-9)


def test_noise_drops_the_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    noise = cpu_decoder._noise((101, 999), 0.1, torch.float32)  # not a multiple of four
    assert noise.unique().tolist() == [0.0, pytest.approx(1 / 0.9, rel=1e-5)]
    assert (noise == 0).float().mean().item() == pytest.approx(0.1, abs=0.004)
    assert noise.mean().item() == pytest.approx(1.0, abs=0.005)
    ahead = [(noise.flatten()[:-step] == 0) & (noise.flatten()[step:] == 0) for step in range(1, 9)]
    assert all(both.float().mean().item() == pytest.approx(0.01, abs=0.0015) for both in ahead)
    torch.manual_seed(0)
    assert torch.equal(cpu_decoder._noise((101, 999), 0.1, torch.float32), noise)


def test_where_it_does_not_apply() -> None:
    rows = torch.zeros(1, 2, 3)
    assert cpu_decoder.applies(rows) and cpu_decoder.applies(rows.double())
    assert not cpu_decoder.applies(rows.bfloat16()) and not cpu_decoder.applies(rows.to("meta"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not cpu_decoder.applies(rows)
