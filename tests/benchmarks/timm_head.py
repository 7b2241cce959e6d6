"""timm's ML-Decoder made to run, and what others make of it: the peers of our head in `head` and `train_step`.

`timm.layers.ml_decoder.MLDecoder` (1.0.31) fails on torch 2.1 and later, because `nn.TransformerDecoder` has since
asked its layer for `self_attn.batch_first` and handed it two hints more. Nothing of timm is patched here: a subclass
puts a layer in place that has the attribute and drops the hints. All that computes is timm's.

Shape letters: B images, C feature channels, H x W positions, T = H * W tokens, K classes, Q queries, G classes per
query, D embed_dim.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from timm.layers import ml_decoder
from torch import Tensor, nn
from torch.nn import functional

from trainables.convert_heads import to_timm
from trainables.ml_decoder import MLDecoder


class _Layer(ml_decoder.TransformerDecoderLayerOptimal):
    """timm's layer, as `nn.TransformerDecoder` has wanted one since torch 2.1."""

    self_attn = SimpleNamespace(batch_first=False)

    def forward(self, target: Tensor, memory: Tensor, **hints: Any) -> Tensor:  # type: ignore[override]
        return super().forward(target, memory)


class TimmHead(ml_decoder.MLDecoder):
    """timm's head: (B, C, H, W) or (B, T, C) -> (B, K)."""

    def __init__(self, num_classes: int, *, in_features: int, query_num: int, embed_dim: int = 768) -> None:
        super().__init__(num_classes, query_num, embed_dim, in_features)
        self.decoder.layers[0] = _Layer(embed_dim)


class PullRequestHead(TimmHead):
    """What timm's pull request 2045, open since 2023, computes: the same layer, and one product for the loop."""

    def forward(self, features: Tensor) -> Tensor:
        tokens_BTC = features.flatten(2).transpose(1, 2) if features.ndim == 4 else features
        memory_BTD = functional.relu(self.embed_standart(tokens_BTC), inplace=True)
        queries_QBD = self.query_embed.weight.unsqueeze(1).expand(-1, len(features), -1)
        decoded_QBD = self.decoder(queries_QBD, memory_BTD.transpose(0, 1))
        logits_QBG = decoded_QBD @ self.duplicate_pooling
        return logits_QBG.transpose(0, 1).flatten(1)[:, : self.num_classes] + self.duplicate_pooling_bias


def from_ours(head: MLDecoder, kind: type[TimmHead] = TimmHead) -> TimmHead:
    """A peer with the weights, device and mode of `head`, whose feedforward width must be timm's 2048."""
    query_num, embed_dim, _ = head.group_weight.shape
    with head.group_weight.device:
        peer = kind(head.num_classes, in_features=head.in_features, query_num=query_num, embed_dim=embed_dim)
    peer.load_state_dict(to_timm(head.state_dict()))
    return peer.train(head.training)


class _Decoded(nn.Module):
    """A decoder that has done its work."""

    def __init__(self, decoded_QBD: Tensor) -> None:
        super().__init__()
        self.decoded_QBD = decoded_QBD

    def forward(self, target: Tensor, memory: Tensor) -> Tensor:
        return self.decoded_QBD


def loop_alone(head: TimmHead, decoded_QBD: Tensor) -> TimmHead:
    """`head` with nothing left but its loop over queries: called with `nothing(batch)`, it answers for `decoded`."""
    head.embed_standart, head.decoder = nn.Identity(), _Decoded(decoded_QBD)
    return head


def nothing(decoded_QBD: Tensor) -> Tensor:
    """Features for `loop_alone`, which looks at their batch size only."""
    return torch.zeros(decoded_QBD.shape[1], 1, 1, device=decoded_QBD.device)
