"""Parameters and multiply-accumulates, against published counts, real models and the head's closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from trainables.classifier import build
from trainables.config import ModelConfig
from trainables.cost import Cost, cost

torch.set_num_threads(1)


def _config(backbone: str = "resnet50", **changes: Any) -> ModelConfig:
    return ModelConfig.model_validate({"backbone": backbone, "num_classes": 80, **changes})


def _head_macs(tokens: int, *, channels: int = 2048, queries: int = 80, group: int = 1) -> int:
    """Embedding, three projections of keys, values and queries, attention, output, feed-forward, groups."""
    width, hidden = 768, 2048
    return (
        tokens * channels * width
        + 2 * tokens * width**2
        + queries * width**2
        + 2 * queries * tokens * width
        + queries * width**2
        + 2 * queries * width * hidden
        + queries * width * group
    )


# Of PaddleClas's and timm's tables and by hand: FLOPs at 224, 320 and 448 in 10^9, parameters in 10^6.
@pytest.mark.parametrize(
    ("backbone", "head", "params_m", "flops_g"),
    [
        ("resnet50", "gap", 23.672, {224: 8.17, 320: 16.68, 448: 32.70}),
        ("resnet50", "ml_decoder", 30.720, {224: 9.15, 320: 17.95, 448: 34.52}),
        ("resnet50d", "gap", 23.691, {224: 8.65, 320: 17.66, 448: 34.61}),
        ("resnet50d", "ml_decoder", 30.739, {224: 9.63, 320: 18.93, 448: 36.43}),
    ],
)
def test_the_published_models_cost_what_is_known(
    backbone: str, head: str, params_m: float, flops_g: dict[int, float]
) -> None:
    for size, expected in flops_g.items():
        found = cost(_config(backbone, head=head), size)
        assert found.flops / 1e9 == pytest.approx(expected, rel=0.002)
        assert found.params / 1e6 == pytest.approx(params_m, abs=0.0006)


def test_the_1000_class_models_have_the_published_parameters() -> None:
    resnet50, resnet50d = (cost(_config(name, head="gap", num_classes=1000), 224) for name in ("resnet50", "resnet50d"))
    assert (resnet50.params, resnet50d.params) == (25_557_032, 25_576_264)
    assert (resnet50.flops / 1e9, resnet50d.flops / 1e9) == pytest.approx((8.178, 8.658), rel=1e-3)


@pytest.mark.parametrize(("queries", "group"), [(80, 1), (20, 4)])
def test_the_head_costs_its_closed_form(queries: int, group: int) -> None:
    for size, tokens in ((224, 49), (448, 196)):
        with_head = cost(_config(query_num=queries), size)
        without = cost(_config(head="gap"), size)
        head_macs = with_head.macs - (without.macs - 2048 * 80)
        assert head_macs == _head_macs(tokens, queries=queries, group=group)


def test_the_queries_are_the_only_frozen_parameters() -> None:
    assert cost(_config(), 224).frozen == 80 * 768
    assert cost(_config(head="gap"), 224).frozen == 0
    frozen = cost(_config(head="gap", freeze="backbone"), 224)
    assert frozen.params - frozen.frozen == 2048 * 80 + 80


def test_it_counts_what_a_real_forward_pass_computes() -> None:
    # The oracle runs with contents on the CPU; attention as plain products, which the counter sees.
    config = _config("vit_tiny_patch16_224", head="gap")
    model = build(config, 64).eval()
    with (
        torch.no_grad(),
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(torch.zeros(1, 3, 64, 64))
    params = sum(weight.numel() for weight in model.parameters())
    assert cost(config, 64) == Cost(params, 0, counter.get_total_flops() // 2)


def test_weights_and_dropout_cost_nothing_and_are_not_looked_for() -> None:
    plain = cost(_config("resnet18"), 64)
    assert cost(_config("resnet18.a1_in1k", pretrained=True, dropout=0.3, drop_path=0.1), 64) == plain
    assert cost(_config("resnet18", weights="no/such/file.pth"), 64) == plain


def test_a_norm_over_one_position_is_no_problem() -> None:
    # In training mode, batch norm after pooling refuses a single image.
    assert cost(_config("skresnet18", head="gap"), 64).macs > 0


def test_words_are_frozen_and_cost_a_projection() -> None:
    words = cost(_config(head="word_decoder"), 224, word_width=100)
    assert words.frozen == 80 * 100
    # A shared projection to one logit instead of one for each query: a vector product, which is not counted.
    expected = cost(_config(), 224).macs - 80 * 768 + 80 * 100 * 768
    assert words.macs == expected


def test_an_unknown_number_of_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="num_classes must be known"):
        cost(_config(num_classes=None), 224)
