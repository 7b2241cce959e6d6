"""timm's ML-Decoder made to run, and what peers make of it: the heads that `head` and `train_step` compare ours with.

`timm.layers.ml_decoder.MLDecoder` fails on torch 2.1 and later, because `nn.TransformerDecoder` has since asked its
layer for `self_attn.batch_first` and handed it two hints more. Nothing of timm is patched here: a subclass puts a
layer in its place that has the attribute and drops the hints. All that computes is timm's.

Shape letters: B images, C feature channels, H x W positions, K classes, Q queries, G classes per query, D embed_dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from timm.layers import ml_decoder
from torch import Tensor, nn
from torch.nn import functional

from trainables.ml_decoder import MLDecoder

LAYER = "decoder.layers.0"


class _Layer(ml_decoder.TransformerDecoderLayerOptimal):
    """timm's layer, as `nn.TransformerDecoder` has wanted one since torch 2.1."""

    self_attn = SimpleNamespace(batch_first=False)

    def forward(self, target: Tensor, memory: Tensor, **hints: Any) -> Tensor:
        return super().forward(target, memory)


class TimmHead(ml_decoder.MLDecoder):
    """timm's head: (B, C, H, W) -> (B, K)."""

    def __init__(self, num_classes: int, *, in_features: int, query_num: int, embed_dim: int = 768) -> None:
        super().__init__(num_classes, query_num, embed_dim, in_features)
        self.decoder.layers[0] = _Layer(embed_dim)


class PullRequestHead(TimmHead):
    """What timm's open pull request 2045 computes: the layer as it is, the loop over queries as one product."""

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
    with torch.device(head.group_bias.device):
        peer = kind(head.num_classes, in_features=head.in_features, query_num=query_num, embed_dim=embed_dim)
    peer.load_state_dict(in_timms_names(head.state_dict()))
    return peer.train(head.training)


def in_timms_names(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights (or gradients) of our head under the names of timm's."""
    renamed = {
        "embed_standart.weight": ours["input_proj.weight"],
        "embed_standart.bias": ours["input_proj.bias"],
        "query_embed.weight": ours["queries"],
        "duplicate_pooling": ours["group_weight"],
        "duplicate_pooling_bias": ours["group_bias"],
    }
    for kind in ("weight", "bias"):
        pair = (ours[f"query_proj.{kind}"], ours[f"key_value_proj.{kind}"])
        renamed[f"{LAYER}.multihead_attn.in_proj_{kind}"] = torch.cat(pair)
        renamed[f"{LAYER}.multihead_attn.out_proj.{kind}"] = ours[f"out_proj.{kind}"]
        for name in ("norm1", "norm2", "norm3", "linear1", "linear2"):
            renamed[f"{LAYER}.{name}.{kind}"] = ours[f"{name}.{kind}"]
    return renamed


class _Given(nn.Module):
    """A decoder that has decoded already."""

    def __init__(self, decoded_QBD: Tensor) -> None:
        super().__init__()
        self.decoded_QBD = decoded_QBD

    def forward(self, target: Tensor, memory: Tensor) -> Tensor:
        return self.decoded_QBD


def loop_alone(head: TimmHead, decoded_QBD: Tensor) -> Tensor:
    """timm's loop over the queries and nothing else of its head: (Q, B, D) -> (B, K)."""
    head.embed_standart, head.decoder = nn.Identity(), _Given(decoded_QBD)
    return head(decoded_QBD.new_zeros(decoded_QBD.shape[1], 1, 1))
