"""What a configured classifier costs: parameters and multiply-accumulates, counted without data, memory or weights.

The model is built on PyTorch's meta device and runs once on fake tensors, which have shapes and a device but no
contents. Counted are convolutions and matrix products, attention's own included, as in the tables of papers:
biases, norms and activations are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from trainables.classifier import build
from trainables.config import ModelConfig

FREE = {
    "pretrained": False,
    "weights": None,
    "dropout": 0.0,
    "drop_path": 0.0,
    "gradient_checkpointing": False,
}
"""Settings that change neither count; dropout would make the decoder's query side run once per image."""


@dataclass(frozen=True)
class Cost:
    """Of one model for one image."""

    params: int
    """All weights that a forward pass reads, the frozen ones included."""
    frozen: int
    """Of these, what training never changes: the decoder's queries, and a backbone that was frozen."""
    macs: int
    """Multiply-accumulates of one image."""

    @property
    def flops(self) -> int:
        """Multiplications and additions, two a MAC; what PaddleClas's tables call FLOPs."""
        return 2 * self.macs


def cost(model_config: ModelConfig, image_size: int, *, word_width: int = 300) -> Cost:
    """The cost of `trainables.classifier.build(model_config)` on one image of `image_size` pixels.

    `word_width` is that of the word decoder's vectors (GloVe's by default); other heads ignore it. Raises
    ValueError as `build` does.
    """
    # Weights tags of one architecture cost the same, so that they share a count.
    architecture = model_config.backbone.partition(".")[0]
    return _cost(model_config.model_copy(update={**FREE, "backbone": architecture}), image_size, word_width)


@lru_cache(maxsize=256)
def _cost(model_config: ModelConfig, image_size: int, word_width: int) -> Cost:
    words = None
    if model_config.head == "word_decoder" and model_config.num_classes is not None:
        words = torch.ones(model_config.num_classes, word_width)
    with torch.device("meta"):
        model = build(model_config, image_size, words).eval()
    # In evaluation the decoder may know its query side already; it is counted always.
    model.head.train()
    buffers = [buffer for buffer in model.head.buffers() if buffer.is_floating_point()]
    kept = sum(buffer.numel() for buffer in buffers)
    frozen = sum(weight.numel() for weight in model.parameters() if not weight.requires_grad)
    return Cost(
        params=sum(weight.numel() for weight in model.parameters()) + kept,
        frozen=frozen + kept,
        macs=_macs(model, image_size),
    )


def _macs(model: nn.Module, image_size: int) -> int:
    """One forward pass of one image. The fused attention kernels hide their products; the plain one shows them."""
    with FakeTensorMode(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        # Not on the meta device itself: autocast, which the heads switch off for their logits, refuses it.
        weights = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype)
            for name, tensor in chain(model.named_parameters(), model.named_buffers())
        }
        functional_call(model, weights, (torch.empty(1, 3, image_size, image_size),))
    return counter.get_total_flops() // 2
