"""ML-Decoder with words as queries (arXiv 2111.12933): classes are named, so unseen ones can be asked for, too.

A word vector, projected, is the query of its class, and one projection, shared by all classes, turns each decoded
query into a logit. Any number of words may be asked at inference. The reference keeps the words outside of its
state dict; here those of the data set's classes are a buffer, and a call may bring others.

Shape letters: B images, C feature channels, H x W positions, T tokens, K words, W their width, D embed_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.config import WordsConfig
from trainables.decoder import Decoder, widened, without_autocast


class WordDecoder(Decoder):
    """Feature map (B, C, H, W) or tokens (B, T, C) -> logits (B, K), at least float32, one a word.

    `words` (K, W) float, one row a class, are scaled to unit length. Raises ValueError if they are not a
    finite matrix without zero rows, or if num_heads does not divide embed_dim.
    """

    words: Tensor

    def __init__(
        self,
        words: Tensor,
        *,
        in_features: int,
        embed_dim: int = 768,
        num_heads: int = 8,
        feedforward_dim: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(
            in_features=in_features,
            embed_dim=embed_dim,
            num_heads=num_heads,
            feedforward_dim=feedforward_dim,
            dropout=dropout,
        )
        self.register_buffer("words", unit(words))
        self.word_proj = nn.Linear(words.shape[1], embed_dim)
        self.logit_weight = nn.Parameter(torch.empty(embed_dim))
        self.logit_bias = nn.Parameter(torch.zeros(1))
        nn.init.normal_(self.logit_weight, std=(2.0 / (embed_dim + 1)) ** 0.5)  # Xavier-normal, as in the reference

    def forward(self, features: Tensor, words: Tensor | None = None) -> Tensor:
        """(B, C, H, W) or (B, T, C), and other words (K, W) of unit length if wanted -> (B, K)."""
        asked_KW = self.words if words is None else words
        own = (self.words, self.word_proj.weight, self.word_proj.bias) if words is None else None
        decoded_BKD = self._decode(features, lambda: functional.relu(self.word_proj(asked_KW)), own)
        wide = widened(decoded_BKD)
        with without_autocast(decoded_BKD):
            return decoded_BKD.to(wide) @ self.logit_weight.to(wide) + self.logit_bias.to(wide)


def unit(words_KW: Tensor) -> Tensor:
    """Rows scaled to unit length; ValueError as `WordDecoder` says."""
    has_values = words_KW.device.type != "meta"
    if words_KW.ndim != 2 or (has_values and not (words_KW.isfinite().all() and words_KW.any(dim=1).all())):
        raise ValueError(
            f"word vectors must be a finite matrix (words, width) without zero rows, but got shape "
            f"{tuple(words_KW.shape)}. Check the file of data.word_vectors."
        )
    return functional.normalize(words_KW.float())


def augment_words(words_KW: Tensor, labels_BK: Tensor, config: WordsConfig) -> tuple[Tensor, Tensor]:
    """Training's queries and their labels: the seen words with noise, then mixed, then random ones.

    The paper names these three without formulas; here, a mixed query is a random point between two seen words
    and is as positive as they are, in the same shares; a random query has a random direction, and no image shows
    it. Random numbers come from torch's default CPU generator.

    Returns:
        words (K + num_mixed + num_random, W) of unit length, labels (B, the same).
    """
    num_words, width = words_KW.shape
    share_MK = torch.zeros(config.num_mixed, num_words)
    if config.num_mixed and num_words > 1:
        first = torch.randint(num_words, (config.num_mixed,))
        second = (first + torch.randint(1, num_words, (config.num_mixed,))) % num_words
        share = torch.rand(config.num_mixed)
        rows = torch.arange(config.num_mixed)
        share_MK[rows, first], share_MK[rows, second] = share, 1 - share
    share_MK = share_MK.to(words_KW)
    noisy_KW = words_KW + (config.noise / width**0.5) * torch.randn(num_words, width).to(words_KW)
    random_RW = torch.randn(config.num_random, width).to(words_KW)
    zeros_BR = labels_BK.new_zeros(len(labels_BK), config.num_random)
    return (
        functional.normalize(torch.cat([noisy_KW, share_MK @ words_KW, random_RW])),
        torch.cat([labels_BK, labels_BK @ share_MK.T.to(labels_BK.dtype), zeros_BR], dim=1),
    )
