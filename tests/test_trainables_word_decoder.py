"""The word decoder against timm's own decoder layer, and its query augmentation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.config import WordsConfig
from trainables.ml_decoder import MLDecoder
from trainables.word_decoder import WordDecoder, augment_words, unit

torch.set_num_threads(1)

SIZE: dict[str, Any] = {"in_features": 24, "embed_dim": 16, "num_heads": 2, "feedforward_dim": 32}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _head(num_words: int = 5, width: int = 6) -> WordDecoder:
    head = WordDecoder(torch.randn(num_words, width), **SIZE)
    for parameter in head.parameters():
        parameter.data.add_(torch.randn(parameter.shape), alpha=0.1)
    return head.eval()


class _NoSelfAttention(nn.Module):
    def forward(self, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return query, None


def _stock(head: WordDecoder, features: Tensor, words: Tensor) -> Tensor:
    """The same function from PyTorch's own decoder layer, word by word."""
    layer: Any = nn.TransformerDecoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    own = head.state_dict()
    renamed = {
        name: own[name] for name in own if name.split(".")[0] in ("norm1", "norm2", "norm3", "linear1", "linear2")
    }
    for kind in ("weight", "bias"):
        renamed[f"multihead_attn.in_proj_{kind}"] = torch.cat(
            [own[f"query_proj.{kind}"], own[f"key_value_proj.{kind}"]]
        )
        renamed[f"multihead_attn.out_proj.{kind}"] = own[f"out_proj.{kind}"]
    del layer.self_attn
    layer.load_state_dict(renamed)
    layer.self_attn = _NoSelfAttention()
    memory = torch.relu(
        functional.linear(features.flatten(2).transpose(1, 2), own["input_proj.weight"], own["input_proj.bias"])
    )
    columns = []
    for word in words:
        query = torch.relu(own["word_proj.weight"] @ word + own["word_proj.bias"])
        decoded = layer(query.expand(len(features), 1, -1), memory)[:, 0]
        columns.append(decoded @ own["logit_weight"] + own["logit_bias"])
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("num_words", [1, 5, 11])
def test_any_number_of_words_gives_a_logit_each(num_words: int) -> None:
    head, features = _head(), torch.randn(3, 24, 2, 2)
    words = unit(torch.randn(num_words, 6))
    torch.testing.assert_close(head(features, words), _stock(head, features, words), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(head(features), _stock(head, features, head.words), atol=1e-5, rtol=1e-5)


def test_a_words_logit_does_not_depend_on_what_else_is_asked() -> None:
    head, features = _head(), torch.randn(3, 24, 2, 2)
    together = head(features)
    for k in range(5):
        torch.testing.assert_close(head(features, head.words[k : k + 1])[:, 0], together[:, k], atol=1e-6, rtol=1e-6)


def test_the_words_are_saved_scaled_and_not_trained() -> None:
    head = _head()
    assert "words" in head.state_dict() and "words" not in dict(head.named_parameters())
    torch.testing.assert_close(head.words.norm(dim=1), torch.ones(5))


def test_it_has_one_projection_for_all_classes() -> None:
    few, many = WordDecoder(torch.randn(2, 6), **SIZE), WordDecoder(torch.randn(99, 6), **SIZE)
    sizes = [sum(p.numel() for p in head.parameters()) for head in (few, many)]
    assert sizes[0] == sizes[1]
    assert sizes[0] == sum(p.numel() for p in MLDecoder(1, **SIZE).parameters()) + 7 * 16


@pytest.mark.parametrize("words", [torch.zeros(3, 4), torch.full((2, 2), torch.nan), torch.ones(4)])
def test_vectors_without_a_direction_are_refused(words: Tensor) -> None:
    with pytest.raises(ValueError, match="word vectors must be a finite matrix"):
        WordDecoder(words, **SIZE)


def test_without_augmentation_words_and_labels_stay() -> None:
    words, labels = unit(torch.randn(5, 6)), torch.randint(2, (3, 5)).float()
    got_words, got_labels = augment_words(words, labels, WordsConfig())
    torch.testing.assert_close(got_words, words)
    assert torch.equal(got_labels, labels)


def test_noise_moves_each_word_by_about_its_share_and_leaves_the_labels() -> None:
    words, labels = unit(torch.randn(400, 100)), torch.ones(2, 400)
    noisy, got = augment_words(words, labels, WordsConfig(noise=0.5))
    assert torch.equal(got, labels)
    torch.testing.assert_close(noisy.norm(dim=1), torch.ones(400))
    # A step of length 0.5 at a right angle: the cosine is 1 / sqrt(1 + 0.25).
    assert (noisy * words).sum(1).mean().item() == pytest.approx(1.25**-0.5, abs=0.01)


def test_mixed_queries_lie_between_two_words_and_so_do_their_labels() -> None:
    words, labels = torch.eye(5), torch.tensor([[1.0, 0, 0, 0, 0], [0, 1, 0, 1, 0]])
    mixed, got = augment_words(words, labels, WordsConfig(num_mixed=200))
    share = mixed[5:] / mixed[5:].sum(1, keepdim=True)  # words are axes here, so a mixture shows its shares
    assert ((share > 0).sum(1) == 2).all()
    torch.testing.assert_close(got[:, 5:], labels @ share.T, atol=1e-5, rtol=1e-5)
    assert torch.equal(got[:, :5], labels) and torch.equal(mixed[:5], words)
    assert (share > 0).any(0).all()


def test_random_queries_are_negative_for_every_image() -> None:
    words, labels = unit(torch.randn(5, 64)), torch.ones(2, 5)
    got_words, got = augment_words(words, labels, WordsConfig(num_random=300))
    assert got_words.shape == (305, 64) and not got[:, 5:].any()
    torch.testing.assert_close(got_words.norm(dim=1), torch.ones(305))
    assert (got_words[5:] @ words.T).abs().mean().item() == pytest.approx((2 / torch.pi / 64) ** 0.5, rel=0.2)


def test_the_same_seed_gives_the_same_queries() -> None:
    config = WordsConfig(noise=0.1, num_mixed=3, num_random=3)
    words, labels = unit(torch.randn(5, 6)), torch.ones(2, 5)
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(augment_words(words, labels, config)[0])
    assert torch.equal(*drawn)
