"""ML-Decoder: a classification head of one decoder layer without self-attention (arXiv 2111.12933).

Each query attends to the backbone's feature map and answers for a group of classes (the paper's "group
decoding"), so the cost follows the number of queries, not of classes. Same function as the authors' code
(Alibaba-MIIL/ML_Decoder), which tests pin against an independent implementation; computed differently:

- the group projection is one batched product instead of a loop over queries, and runs in float32 even under
  autocast, because bfloat16 logits tie and mean average precision ranks them;
- attention runs in `scaled_dot_product_attention`, keys and values come from one product;
- what is the same for all images (without query dropout: the first norm and the query projection) is computed
  once per batch. It is not kept between batches: at a batch of 16 that would save less than 1% of the head,
  and weights written through `.data` would leave it stale without a sign.

Shape letters: B images, C feature channels, H x W positions, T = H * W tokens, K classes, Q queries, G
classes per query, D embed_dim, N heads, E = D / N, F feedforward_dim, L either Q or T, b either B or 1.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.groups import distinct_query_nums, group_size, live_queries, validate_query_num


class MLDecoder(nn.Module):
    """Feature map (B, C, H, W) or tokens (B, T, C) -> logits (B, num_classes), at least float32.

    `query_num` None means one query per class. The queries are fixed random directions, not learned, as in
    the reference: a buffer, so no optimizer sees them. Raises ValueError if query_num is not within [1,
    num_classes] or num_heads does not divide embed_dim; warns if some queries would own no class.
    """

    queries: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        in_features: int,
        query_num: int | None = None,
        embed_dim: int = 768,
        num_heads: int = 8,
        feedforward_dim: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        query_num = num_classes if query_num is None else query_num
        validate_query_num(num_classes, query_num)
        if embed_dim % num_heads:
            raise ValueError(
                f"embed_dim must be divisible by num_heads, but got embed_dim={embed_dim}, "
                f"num_heads={num_heads}. Change one of them."
            )
        _warn_of_dead_queries(num_classes, query_num)
        self.num_classes = num_classes
        self.in_features = in_features
        self.num_heads = num_heads
        self.dropout = dropout

        self.input_proj = nn.Linear(in_features, embed_dim)
        self.register_buffer("queries", torch.randn(query_num, embed_dim))  # (Q, D)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.query_proj = nn.Linear(embed_dim, embed_dim)
        self.key_value_proj = nn.Linear(embed_dim, 2 * embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.linear1 = nn.Linear(embed_dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, embed_dim)
        self.norm3 = nn.LayerNorm(embed_dim)
        size = group_size(num_classes, query_num)
        self.group_weight = nn.Parameter(torch.empty(query_num, embed_dim, size))
        self.group_bias = nn.Parameter(torch.empty(num_classes))
        self._init_attention_and_groups()

    def _init_attention_and_groups(self) -> None:
        """The reference's initial distributions, where they are not `nn.Linear`'s own."""
        query_num, embed_dim, size = self.group_weight.shape
        # The reference draws the three attention projections as one Xavier-uniform (3D, D) matrix.
        bound = math.sqrt(6.0 / (3 * embed_dim + embed_dim))
        for projection in (self.query_proj, self.key_value_proj):
            nn.init.uniform_(projection.weight, -bound, bound)
            nn.init.zeros_(projection.bias)
        nn.init.zeros_(self.out_proj.bias)
        # Xavier-normal of a (Q, D, G) tensor counts G as receptive field: fan_in = D * G, fan_out = Q * G.
        nn.init.normal_(self.group_weight, std=math.sqrt(2.0 / (size * (embed_dim + query_num))))
        nn.init.zeros_(self.group_bias)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) or (B, T, C) -> (B, num_classes); ValueError on any other shape."""
        memory_BTD = functional.relu(self.input_proj(self._tokens(features)))
        target_bQD = self.norm1(self._noisy_queries(memory_BTD))
        target_BQD = self.norm2(target_bQD + self._drop(self._cross_attention(target_bQD, memory_BTD)))
        hidden_BQF = self._drop(functional.relu(self.linear1(target_BQD)))
        target_BQD = self.norm3(target_BQD + self._drop(self.linear2(hidden_BQF)))
        return self._group_projection(target_BQD)

    def _tokens(self, features: Tensor) -> Tensor:
        tokens_BTC = features.flatten(2).transpose(1, 2) if features.ndim == 4 else features
        if tokens_BTC.ndim != 3 or tokens_BTC.shape[-1] != self.in_features:
            raise ValueError(
                f"features must be (B, {self.in_features}, H, W) or (B, T, {self.in_features}), "
                f"but got {tuple(features.shape)}. Set in_features to the backbone's channels."
            )
        return tokens_BTC

    def _noisy_queries(self, memory_BTD: Tensor) -> Tensor:
        """(B, Q, D) in training, where every image sees its own dropout noise; (1, Q, D) without dropout.

        The reference replaces self-attention by the identity but keeps its residual and dropout: q + drop(q).
        """
        query_1QD = self.queries.unsqueeze(0)
        if self.training and self.dropout > 0:
            query_1QD = query_1QD.expand(memory_BTD.shape[0], -1, -1)
        return query_1QD + self._drop(query_1QD)

    def _cross_attention(self, target_bQD: Tensor, memory_BTD: Tensor) -> Tensor:
        batch = memory_BTD.shape[0]
        query_BNQE = self._split_heads(self.query_proj(target_bQD)).expand(batch, -1, -1, -1)
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

    def _group_projection(self, target_BQD: Tensor) -> Tensor:
        """(B, Q, D) -> (B, K): query q gives the logits of classes q * G to q * G + G - 1."""
        wide = torch.promote_types(target_BQD.dtype, torch.float32)
        with torch.autocast(target_BQD.device.type, enabled=False):
            logits_QBG = torch.bmm(target_BQD.to(wide).transpose(0, 1), self.group_weight.to(wide))
        logits_BK = logits_QBG.transpose(0, 1).flatten(1)[:, : self.num_classes]
        return logits_BK + self.group_bias

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training)


def _warn_of_dead_queries(num_classes: int, query_num: int) -> None:
    live = live_queries(num_classes, query_num)
    if live == query_num:
        return
    sizes = distinct_query_nums(num_classes)
    position = sizes.index(live)
    near = ", ".join(str(size) for size in sizes[max(0, position - 2) : position + 3])
    warnings.warn(
        f"every query should own a class, but of query_num={query_num} only {live} do "
        f"(num_classes={num_classes}, {group_size(num_classes, query_num)} classes per query): "
        f"this is query_num={live} at a higher cost. "
        f"Sizes without waste near it: {near}.",
        stacklevel=3,
    )
