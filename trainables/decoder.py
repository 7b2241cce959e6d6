"""ML-Decoder's one decoder layer, without self-attention (arXiv 2111.12933); the heads say what asks and who answers.

Same function as the authors' code (Alibaba-MIIL/ML_Decoder), computed differently:

- attention runs in `scaled_dot_product_attention`, keys and values come from one product; in float32 on a CPU,
  outside of compilers, the whole layer in the operations that are fastest there (`cpu_decoder`);
- what is the same for all images (without query dropout: the first norm and the query projection) is computed
  once per batch, and in evaluation once as long as the weights stay the same.

Shape letters: B images, C feature channels, H x W positions, T = H * W tokens, Q queries, D embed_dim, N heads,
E = D / N, F feedforward_dim, L either Q or T, b either B or 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables import cpu_decoder
from trainables.eval_cache import EvalCache


class Decoder(nn.Module):
    """The layer that the heads inherit: `_decode` takes their queries through it.

    Raises ValueError if num_heads does not divide embed_dim.
    """

    def __init__(
        self, *, in_features: int, embed_dim: int, num_heads: int, feedforward_dim: int, dropout: float
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(
                f"embed_dim must be divisible by num_heads, but got embed_dim={embed_dim}, "
                f"num_heads={num_heads}. Change one of them."
            )
        self.in_features = in_features
        self.num_heads = num_heads
        self.dropout = dropout
        self._cache = EvalCache()

        self.input_proj = nn.Linear(in_features, embed_dim)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.query_proj = nn.Linear(embed_dim, embed_dim)
        self.key_value_proj = nn.Linear(embed_dim, 2 * embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.linear1 = nn.Linear(embed_dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, embed_dim)
        self.norm3 = nn.LayerNorm(embed_dim)
        # The reference draws the three attention projections as one Xavier-uniform (3D, D) matrix.
        bound = math.sqrt(6.0 / (3 * embed_dim + embed_dim))
        for projection in (self.query_proj, self.key_value_proj):
            nn.init.uniform_(projection.weight, -bound, bound)
            nn.init.zeros_(projection.bias)
        nn.init.zeros_(self.out_proj.bias)

    def train(self, mode: bool = True) -> Self:
        """As of any module; what evaluation keeps is forgotten."""
        self._cache.clear()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self._cache.clear()
        return super()._apply(*args, **kwargs)

    def _decode(self, features: Tensor, queries: Callable[[], Tensor], sources: Sequence[Tensor] | None) -> Tensor:
        """Features (B, C, H, W) or (B, T, C) and queries (Q, D) -> decoded queries (B, Q, D).

        `sources`: the tensors of this module that the queries are computed from; None where others are among them.
        Raises ValueError on features of any other shape.
        """
        tokens_BTC = self._tokens(features)
        if cpu_decoder.applies(tokens_BTC):
            return cpu_decoder.decode(self, tokens_BTC, queries, sources)
        memory_BTD = functional.relu(self.input_proj(tokens_BTC))
        target_bQD, query_bQD = self._ask(queries, sources, memory_BTD.shape[0])
        target_BQD = self.norm2(target_bQD + self._drop(self._cross_attention(query_bQD, memory_BTD)))
        hidden_BQF = self._drop(functional.relu(self.linear1(target_BQD)))
        return self.norm3(target_BQD + self._drop(self.linear2(hidden_BQF)))

    def _tokens(self, features: Tensor) -> Tensor:
        tokens_BTC = features.flatten(2).transpose(1, 2) if features.ndim == 4 else features
        if tokens_BTC.ndim != 3 or tokens_BTC.shape[-1] != self.in_features:
            raise ValueError(
                f"features must be (B, {self.in_features}, H, W) or (B, T, {self.in_features}), "
                f"but got {tuple(features.shape)}. Set in_features to the backbone's channels."
            )
        return tokens_BTC

    def _ask(
        self, queries: Callable[[], Tensor], sources: Sequence[Tensor] | None, batch: int
    ) -> tuple[Tensor, Tensor]:
        """The target after the first norm, and its query projection: (b, Q, D) each."""

        def compute() -> tuple[Tensor, Tensor]:
            target_bQD = self.norm1(self._noisy(queries(), batch))
            return target_bQD, self.query_proj(target_bQD)

        if self.training or sources is None:
            return compute()
        own = (self.norm1.weight, self.norm1.bias, self.query_proj.weight, self.query_proj.bias)
        return self._cache.get((*sources, *own), compute)

    def _noisy(self, queries_QD: Tensor, batch: int) -> Tensor:
        """(B, Q, D) in training, where every image sees its own dropout noise; (1, Q, D) without dropout.

        The reference replaces self-attention by the identity but keeps its residual and dropout: q + drop(q).
        """
        query_1QD = queries_QD.unsqueeze(0)
        if self.training and self.dropout > 0:
            query_1QD = query_1QD.expand(batch, -1, -1)
        return query_1QD + self._drop(query_1QD)

    def _cross_attention(self, query_bQD: Tensor, memory_BTD: Tensor) -> Tensor:
        query_BNQE = self._split_heads(query_bQD).expand(memory_BTD.shape[0], -1, -1, -1)
        key_BTD, value_BTD = self.key_value_proj(memory_BTD).chunk(2, dim=-1)
        attended_BNQE = functional.scaled_dot_product_attention(
            query_BNQE,
            self._split_heads(key_BTD),
            self._split_heads(value_BTD),
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out_proj(attended_BNQE.transpose(1, 2).flatten(2))

    def _split_heads(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training)


def without_autocast(x: Tensor) -> AbstractContextManager:
    """No autocast where `x` lives; the meta device, on which models are measured, has none."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def widened(x: Tensor) -> torch.dtype:
    """The type that logits are computed in: float32 at least, since bfloat16 logits tie and mAP ranks them."""
    return torch.promote_types(x.dtype, torch.float32)
