"""The whole model from its configuration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers import DropPath

from trainables.classifier import GlobalAveragePooling, build
from trainables.config import ModelConfig
from trainables.ml_decoder import MLDecoder
from trainables.word_decoder import WordDecoder

torch.set_num_threads(1)


def _config(**changes: Any) -> ModelConfig:
    small = {"backbone": "lcnet_050", "num_classes": 10, "embed_dim": 32, "feedforward_dim": 64}
    return ModelConfig.model_validate({**small, **changes})


@pytest.mark.parametrize("head, kind", [("ml_decoder", MLDecoder), ("gap", GlobalAveragePooling)])
def test_images_become_one_logit_per_class(head: str, kind: type) -> None:
    model = build(_config(head=head), image_size=64)
    assert isinstance(model.head, kind)
    logits = model(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_the_head_gets_every_setting() -> None:
    changes = {"query_num": 5, "embed_dim": 48, "num_heads": 4, "feedforward_dim": 96, "dropout": 0.3}
    head = build(_config(**changes)).head
    assert isinstance(head, MLDecoder)
    assert head.queries.shape == (5, 48)
    assert (head.num_heads, head.linear1.out_features, head.dropout) == (4, 96, 0.3)


def test_the_backbone_gets_stride_and_image_size() -> None:
    model = build(_config(backbone="vit_tiny_patch16_224"), image_size=48)
    assert model(torch.randn(1, 3, 48, 48)).shape == (1, 10)
    assert build(_config(feature_stride=16)).backbone.in_features == 128


def test_pooling_is_a_mean_and_one_linear_layer() -> None:
    head, features = GlobalAveragePooling(7, in_features=4), torch.randn(2, 4, 3, 5)
    torch.testing.assert_close(head(features), head.linear(features.mean(dim=(2, 3))))


@pytest.mark.parametrize("head", ["ml_decoder", "gap"])
def test_logits_are_not_rounded_by_autocast(head: str) -> None:
    model, images = build(_config(head=head)).eval(), torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images)
    assert logits.dtype == torch.float32 and not torch.equal(logits, logits.bfloat16().float())


def test_in_features_is_checked() -> None:
    build(_config(in_features=256))
    with pytest.raises(ValueError, match="got in_features=2048, 'lcnet_050' has 256"):
        build(_config(in_features=2048))


def test_num_classes_must_be_known() -> None:
    with pytest.raises(ValueError, match="num_classes must be known"):
        build(_config(num_classes=None))


def test_scores_are_probabilities_of_the_task() -> None:
    logits = torch.tensor([[0.0, 0.0, 3.0]])
    many, one = (build(_config(num_classes=3, task=task)).scores(logits) for task in ("multi_label", "single_label"))
    assert many[0, 0] == 0.5 and many.sum() > 1
    assert one.sum().item() == pytest.approx(1.0) and one.argmax() == 2


@pytest.mark.parametrize("head", ["ml_decoder", "gap"])
def test_a_frozen_backbone_keeps_weights_and_batch_statistics(head: str) -> None:
    model = build(_config(head=head, freeze="backbone"), image_size=64).train()
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    assert not model.backbone.training and model.head.training
    model(torch.randn(4, 3, 64, 64)).square().sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.backbone.state_dict().items())
    assert {name.partition(".")[0] for name, p in model.named_parameters() if p.grad is not None} == {"head"}
    assert {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"head"}


def test_drop_path_reaches_the_backbone_and_only_where_it_can() -> None:
    def rates(**changes: Any) -> set[float]:
        modules = build(_config(backbone="resnet18", **changes)).modules()
        return {m.drop_prob for m in modules if isinstance(m, DropPath) and m.drop_prob}

    assert rates() == set()
    assert max(rates(drop_path=0.2)) == pytest.approx(0.2)
    with pytest.raises(ValueError, match=r"drop_path must be 0 for 'vgg11'"):
        build(_config(backbone="vgg11", drop_path=0.1))


def test_gradient_checkpointing_runs_blocks_twice_to_the_same_gradients() -> None:
    gradients, forwards = [], []
    images = torch.randn(2, 3, 64, 64)
    for checkpointing in (False, True):
        torch.manual_seed(0)
        config = _config(backbone="vit_tiny_patch16_224", gradient_checkpointing=checkpointing, dropout=0.0)
        model: Any = build(config, image_size=64)
        calls: list[int] = []
        model.backbone.trunk.blocks[0].register_forward_pre_hook(lambda *args, calls=calls: calls.append(1))
        model(images).square().sum().backward()
        forwards.append(len(calls))
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert forwards == [1, 2]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4)


def test_a_word_decoder_asks_with_the_words_it_is_given() -> None:
    words = torch.randn(10, 7)
    model = build(_config(head="word_decoder"), image_size=64, words=words).eval()
    assert isinstance(model.head, WordDecoder)
    images = torch.randn(2, 3, 64, 64)
    assert model(images).shape == (2, 10)
    assert model(images, model.head.words[:3]).shape == (2, 3)
    for wrong in (None, words[:9]):
        with pytest.raises(ValueError, match="a word vector for each of the 10 classes"):
            build(_config(head="word_decoder"), words=wrong)
