"""The decoder layer for PyTorch's eager CPU: the same function in the operations that are fastest there.

- Every product is a 1x1 convolution. oneDNN takes 5 to 12 % less time for it than `linear` does, and reads a map
  (B, C, H, W) and writes keys and values as they are needed, without transposition.
- Queries that are the same for all images become filters: the scores are q (Wk m) = (q Wk) m, so the keys are
  never computed. The key's bias moves all scores of a query alike, which softmax does not notice.
- The affine part of the first norm goes into the query projection. Then nothing has to flow back to queries that
  are not trained: one product less in the backward pass.
- A dropout mask is drawn from 16 random bits a value: a seventh of the time of `bernoulli_`, which is what makes
  `functional.dropout` take an eighth of a training step.

Shape letters: as in `decoder`; S is Q * N. A map 1DBQ is rows BQD, seen as one image of B x Q positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from trainables.decoder import Decoder


def applies(features: Tensor) -> bool:
    """Whether this module may be used: compilers, exporters and cost counters get the plain layer."""
    return (
        type(features) is Tensor
        and features.device.type == "cpu"
        and features.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def decode(
    layer: Decoder, tokens_BTC: Tensor, queries: Callable[[], Tensor], sources: Sequence[Tensor] | None
) -> Tensor:
    """What `Decoder._decode` gives, from tokens (B, T, C), which may be a map's transposed view: (B, Q, D)."""
    memory_BDT1 = _conv(tokens_BTC.transpose(1, 2).unsqueeze(-1), layer.input_proj).relu_()
    target_bQD, query = _ask(layer, queries, sources, len(tokens_BTC))
    attended_BQD = _attend(layer, query, memory_BDT1)
    mixed_1DBQ = _drop_(layer, _conv(_as_map(attended_BQD), layer.out_proj))
    mixed_1DBQ.add_(_as_map(target_bQD.expand_as(attended_BQD)))
    target_BQD = layer.norm2(_as_rows(mixed_1DBQ))
    # Noise is not negative, so it may come before the ReLU, where it needs no memory of its own.
    hidden_1FBQ = _drop_(layer, _conv(_as_map(target_BQD), layer.linear1)).relu_()
    decoded_1DBQ = _drop_(layer, _conv(hidden_1FBQ, layer.linear2)).add_(_as_map(target_BQD))
    return layer.norm3(_as_rows(decoded_1DBQ))


def _ask(
    layer: Decoder, queries: Callable[[], Tensor], sources: Sequence[Tensor] | None, batch: int
) -> tuple[Tensor, Tensor]:
    """As `_project`; in evaluation kept as long as the weights stay the same."""
    if layer.training or sources is None:
        return _project(layer, queries(), batch)
    norm, projection, key_value = layer.norm1, layer.query_proj, layer.key_value_proj
    own = (norm.weight, norm.bias, projection.weight, projection.bias, key_value.weight)
    return layer._cache.get((*sources, *own), lambda: _project(layer, queries(), batch))


def _project(layer: Decoder, queries_QD: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """The target (b, Q, D), and what to ask with: queries (b, N, Q, E), or filters (S + D, D) where they pay.

    The last D filters are those of the values.
    """
    norm, projection, dim = layer.norm1, layer.query_proj, layer.query_proj.in_features
    noisy_bQD = queries_QD.unsqueeze(0)
    if layer.training and layer.dropout > 0:
        noisy_bQD = noisy_bQD * _noise((batch, *queries_QD.shape), layer.dropout, queries_QD.dtype).add_(1.0)
    else:
        noisy_bQD = noisy_bQD + noisy_bQD
    normed_bQD = functional.layer_norm(noisy_bQD, (dim,), eps=norm.eps)
    target_bQD = torch.addcmul(norm.bias, normed_bQD, norm.weight)
    scale = (dim // layer.num_heads) ** -0.5
    weight_DD = projection.weight * (norm.weight * scale)
    bias_D = torch.addmv(projection.bias, projection.weight, norm.bias) * scale
    query_1DbQ = functional.conv2d(_as_map(normed_bQD), weight_DD[:, :, None, None], bias_D)
    query_bNQE = _split_heads(_as_rows(query_1DbQ), layer.num_heads)
    batch_of_queries, num_heads, num_queries, _ = query_bNQE.shape
    if batch_of_queries > 1 or num_heads * num_queries > dim + num_queries:  # products per token: Q * N * D or more
        return target_bQD, query_bNQE
    key_weight_DD, value_weight_DD = layer.key_value_proj.weight.chunk(2)
    filters_NQD = query_bNQE[0] @ key_weight_DD.unflatten(0, (num_heads, -1))
    return target_bQD, torch.cat([filters_NQD.flatten(0, 1), value_weight_DD])


def _attend(layer: Decoder, query: Tensor, memory_BDT1: Tensor) -> Tensor:
    """What `_ask` gave, and the memory -> (B, Q, D)."""
    dim = memory_BDT1.shape[1]
    if query.ndim == 2:
        num_scores = len(query) - dim
        bias = functional.pad(layer.key_value_proj.bias[dim:], (num_scores, 0))
        both_BXT = functional.conv2d(memory_BDT1, query[:, :, None, None], bias).flatten(2)
        scores_BST, values_BDT = both_BXT.split([num_scores, dim], dim=1)
        scores_BNQT = scores_BST.unflatten(1, (layer.num_heads, -1))
    else:
        keys_BDT, values_BDT = _conv(memory_BDT1, layer.key_value_proj).flatten(2).chunk(2, dim=1)
        scores_BNQT = query @ keys_BDT.unflatten(1, (layer.num_heads, -1))
    shares_BNQT = scores_BNQT.softmax(dim=-1)
    if layer.training and layer.dropout > 0:
        shares_BNQT = shares_BNQT * _noise(shares_BNQT.shape, layer.dropout, shares_BNQT.dtype)
    attended_BNQE = shares_BNQT @ values_BDT.unflatten(1, (layer.num_heads, -1)).mT
    return attended_BNQE.transpose(1, 2).flatten(2)


def group_product(decoded_BQD: Tensor, weight_QDG: Tensor) -> Tensor:
    """(B, Q * G). With these kernels both gradients take a third to a fifth of the time of the plain product's."""
    if weight_QDG.shape[-1] == 1:
        return torch.linalg.vecdot(decoded_BQD, weight_QDG.squeeze(-1))
    return torch.bmm(weight_QDG.mT, decoded_BQD.permute(1, 2, 0)).permute(2, 0, 1).flatten(1)


def _drop_(layer: Decoder, x_1DBQ: Tensor) -> Tensor:
    """Dropout in place: autograd needs the noise, not what it falls on."""
    if not layer.training or layer.dropout == 0:
        return x_1DBQ
    _, width, batch, num_queries = x_1DBQ.shape
    return x_1DBQ.mul_(_as_map(_noise((batch, num_queries, width), layer.dropout, x_1DBQ.dtype)))


def _noise(shape: Sequence[int], share: float, dtype: torch.dtype) -> Tensor:
    """Factors of dropout: 0 with probability `share`, rounded to 1 / 65536, else what keeps the mean at 1."""
    count, dropped = math.prod(shape), round(share * 2**16)
    # random_ draws 64 bits at a time: four values' worth
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    kept = bits[:count].view(shape) >= dropped - 2**15
    return kept.to(dtype).mul_(2**16 / (2**16 - dropped))


def _split_heads(x_BQD: Tensor, num_heads: int) -> Tensor:
    return x_BQD.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def _conv(x: Tensor, linear: nn.Linear) -> Tensor:
    return functional.conv2d(x, linear.weight[:, :, None, None], linear.bias)


def _as_map(x_BQD: Tensor) -> Tensor:
    return x_BQD.unsqueeze(0).permute(0, 3, 1, 2)


def _as_rows(x_1DBQ: Tensor) -> Tensor:
    return x_1DBQ.permute(0, 2, 3, 1).squeeze(0)
