"""ML-Decoder: a classification head that replaces global average pooling (arXiv 2111.12933).

Each query attends to the backbone's feature map and answers for a group of classes (the paper's "group
decoding"), so the cost follows the number of queries, not of classes. Same function as the authors' code,
which tests pin against an independent implementation. The group projection is one batched product instead of
their loop over queries, and runs in float32 even under autocast.

Shape letters: B images, C feature channels, H x W positions, T = H * W tokens, K classes, Q queries, G
classes per query, D embed_dim.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from trainables import cpu_decoder
from trainables.decoder import Decoder, widened, without_autocast
from trainables.groups import distinct_query_nums, group_size, live_queries, validate_query_num


class MLDecoder(Decoder):
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
        query_num = num_classes if query_num is None else query_num
        validate_query_num(num_classes, query_num)
        _warn_of_dead_queries(num_classes, query_num)
        super().__init__(
            in_features=in_features,
            embed_dim=embed_dim,
            num_heads=num_heads,
            feedforward_dim=feedforward_dim,
            dropout=dropout,
        )
        self.num_classes = num_classes
        self.register_buffer("queries", torch.randn(query_num, embed_dim))  # (Q, D)
        size = group_size(num_classes, query_num)
        self.group_weight = nn.Parameter(torch.empty(query_num, embed_dim, size))
        self.group_bias = nn.Parameter(torch.zeros(num_classes))
        # Xavier-normal of a (Q, D, G) tensor, as the reference draws it, counts G as receptive field:
        # fan_in = D * G, fan_out = Q * G.
        nn.init.normal_(self.group_weight, std=math.sqrt(2.0 / (size * (embed_dim + query_num))))

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) or (B, T, C) -> (B, num_classes); ValueError on any other shape."""
        return self._group_projection(self._decode(features, lambda: self.queries, (self.queries,)))

    def _group_projection(self, decoded_BQD: Tensor) -> Tensor:
        """(B, Q, D) -> (B, K): query q gives the logits of classes q * G to q * G + G - 1."""
        if cpu_decoder.applies(decoded_BQD):
            logits_BK = cpu_decoder.group_product(decoded_BQD, self.group_weight)
            return logits_BK[:, : self.num_classes] + self.group_bias
        wide = widened(decoded_BQD)
        with without_autocast(decoded_BQD):
            logits_QBG = torch.bmm(decoded_BQD.to(wide).transpose(0, 1), self.group_weight.to(wide))
        logits_BK = logits_QBG.transpose(0, 1).flatten(1)[:, : self.num_classes]
        return logits_BK + self.group_bias


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
