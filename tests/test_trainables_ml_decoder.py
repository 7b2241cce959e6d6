"""The head against two implementations that are not ours: timm's, and stock layers with a class loop."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from timm.layers import ml_decoder as timm_ml_decoder
from torch import Tensor, nn

from trainables import cpu_decoder
from trainables.ml_decoder import MLDecoder

torch.set_num_threads(1)

CASES = [(80, 80), (80, 20), (81, 20), (1000, 100), (80, 60), (1, 1)]
BEYOND_TIMM = (10001, 10000)  # timm computes a group size of 1 here and fails
SHAPES = {"map": (2, 24, 3, 2), "tokens": (2, 5, 24), "one token": (2, 1, 24)}
EMBED_DIM = 16


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, params=["the CPU's operations", "the plain layer"])
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "the plain layer":
        monkeypatch.setattr(cpu_decoder, "applies", lambda features: False)


def _head(num_classes: int, query_num: int | None = None, **options: Any) -> MLDecoder:
    options = {"in_features": 24, "embed_dim": EMBED_DIM, "feedforward_dim": 32, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dead queries are among the cases
        head = MLDecoder(num_classes, query_num=query_num, **options)
    for parameter in head.parameters():  # biases and norms away from 0 and 1, so that none can be forgotten
        parameter.data.add_(torch.randn(parameter.shape), alpha=0.1)
    return head.eval()


def _cotangent(num_classes: int) -> Tensor:
    values = torch.linspace(-1.0, 1.0, 2 * num_classes, dtype=torch.float64)
    return values.reshape(2, num_classes) / num_classes**0.5


def _gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.fixture
def timms_head(monkeypatch: pytest.MonkeyPatch) -> type[nn.Module]:
    """timm's head, whose layer is given what nn.TransformerDecoder has asked of a layer since torch 2.1."""
    layer: Any = timm_ml_decoder.TransformerDecoderLayerOptimal
    forward = layer.forward

    def without_hints(self: nn.Module, target: Tensor, memory: Tensor, **hints: Any) -> Tensor:
        return forward(self, target, memory)

    monkeypatch.setattr(layer, "self_attn", SimpleNamespace(batch_first=False), raising=False)
    monkeypatch.setattr(layer, "forward", without_hints)
    return timm_ml_decoder.MLDecoder


def _in_timms_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    layer = "decoder.layers.0."
    renamed = {
        "embed_standart.weight": tensors["input_proj.weight"],
        "embed_standart.bias": tensors["input_proj.bias"],
        "duplicate_pooling": tensors["group_weight"],
        "duplicate_pooling_bias": tensors["group_bias"],
    }
    for kind in ("weight", "bias"):
        pair = (tensors[f"query_proj.{kind}"], tensors[f"key_value_proj.{kind}"])
        renamed[f"{layer}multihead_attn.in_proj_{kind}"] = torch.cat(pair)
        renamed[f"{layer}multihead_attn.out_proj.{kind}"] = tensors[f"out_proj.{kind}"]
        for name in ("norm1", "norm2", "norm3", "linear1", "linear2"):
            renamed[f"{layer}{name}.{kind}"] = tensors[f"{name}.{kind}"]
    if "queries" in tensors:
        renamed["query_embed.weight"] = tensors["queries"]
    return renamed


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_classes, query_num", CASES)
def test_logits_and_gradients_equal_timms(
    timms_head: type[nn.Module], num_classes: int, query_num: int, shape: str
) -> None:
    head = _head(num_classes, query_num, feedforward_dim=2048).double()
    oracle = timms_head(num_classes, query_num, EMBED_DIM, 24).double().eval()
    oracle.load_state_dict(_in_timms_names(head.state_dict()))

    # In float64: rounding could move an activation over ReLU's kink, and with it a gradient.
    ours = torch.randn(SHAPES[shape], dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    logits, expected = head(ours), oracle(theirs)
    torch.testing.assert_close(logits, expected, atol=1e-10, rtol=1e-10)
    single = copy.deepcopy(head).float()(ours.float())
    torch.testing.assert_close(single, expected.float(), atol=1e-5, rtol=1e-5)

    logits.backward(_cotangent(num_classes))
    expected.backward(_cotangent(num_classes))
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-10, rtol=1e-10)
    expected_gradients = _gradients(oracle)
    gradients = _in_timms_names(_gradients(head))
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-10, rtol=1e-10, msg=name)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_classes, query_num", CASES)
def test_logits_and_gradients_equal_timms_in_float32(
    timms_head: type[nn.Module], num_classes: int, query_num: int, shape: str
) -> None:
    head = _head(num_classes, query_num, feedforward_dim=2048)
    oracle = timms_head(num_classes, query_num, EMBED_DIM, 24).eval()
    oracle.load_state_dict(_in_timms_names(head.state_dict()))
    ours = torch.randn(SHAPES[shape], requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    for module, features in ((head, ours), (oracle, theirs)):
        module(features).backward(_cotangent(num_classes).float())
    torch.testing.assert_close(head(ours), oracle(theirs), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-5)
    expected = _gradients(oracle)
    for name, gradient in _in_timms_names(_gradients(head)).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-5, msg=name)


class _NoSelfAttention(nn.Module):
    def forward(self, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return query, None


def _loop_over_classes(head: MLDecoder, features: Tensor) -> Tensor:
    """ML-Decoder from stock PyTorch layers, one class at a time, with the weights of `head`."""
    layer: Any = nn.TransformerDecoderLayer(EMBED_DIM, head.num_heads, 32, dropout=0.0, batch_first=True)
    weights = {
        name.removeprefix("decoder.layers.0."): tensor
        for name, tensor in _in_timms_names(dict(head.named_parameters())).items()
    }
    del layer.self_attn
    tokens = features.flatten(2).transpose(1, 2) if features.ndim == 4 else features
    memory = torch.relu(tokens @ weights["embed_standart.weight"].T + weights["embed_standart.bias"])
    named = {name: weights[name] for name, _ in layer.named_parameters()}
    layer.self_attn = _NoSelfAttention()
    queries = head.queries.expand(len(features), -1, -1)
    decoded = torch.func.functional_call(layer, named, (queries, memory)).unbind(1)
    size = -(-head.num_classes // len(decoded))
    by_slot = [group.unbind(1) for group in head.group_weight.unbind(0)]
    logits = [decoded[c // size] @ by_slot[c // size][c % size] for c in range(head.num_classes)]
    return torch.stack(logits, dim=1) + head.group_bias


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_classes, query_num", [*CASES, BEYOND_TIMM])
def test_logits_and_gradients_equal_a_loop_over_classes(num_classes: int, query_num: int, shape: str) -> None:
    head = _head(num_classes, query_num, num_heads=2).double()
    features = torch.randn(SHAPES[shape], dtype=torch.float64, requires_grad=True)
    leaves = [features, *head.parameters()]
    results = []
    for logits in (head(features), _loop_over_classes(head, features)):
        results.append((logits, *torch.autograd.grad(logits, leaves, _cotangent(num_classes))))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)


def test_the_default_is_one_query_per_class_and_the_published_size() -> None:
    with torch.device("meta"):
        head = MLDecoder(80, in_features=2048)
    assert head.queries.shape == (80, 768)
    assert sum(t.numel() for t in head.state_dict().values()) == 7_212_112


def test_initial_weights_are_the_references() -> None:
    head = MLDecoder(90, in_features=24, query_num=30, embed_dim=64)
    packed = nn.MultiheadAttention(64, 8).in_proj_weight
    for projection in (head.query_proj, head.key_value_proj):
        assert projection.weight.abs().max().item() == pytest.approx(packed.abs().max().item(), rel=0.02)
        assert not projection.bias.any()
    assert not head.out_proj.bias.any() and not head.group_bias.any()
    drawn = nn.init.xavier_normal_(torch.empty_like(head.group_weight))
    assert head.group_weight.std().item() == pytest.approx(drawn.std().item(), rel=0.1)
    assert head.queries.std().item() == pytest.approx(1.0, rel=0.1)


def test_training_drops_the_queries_per_image() -> None:
    head = _head(80, dropout=0.25).train()
    ratio = head._noisy(head.queries, 8) / head.queries
    kept = torch.isclose(ratio, torch.tensor(1 + 1 / 0.75))
    assert (kept | torch.isclose(ratio, torch.tensor(1.0))).all()
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert not torch.equal(kept[0], kept[1])


def test_without_dropout_training_and_evaluation_agree() -> None:
    head, features = _head(80, 20, dropout=0.0), torch.randn(3, 24, 2, 2)
    torch.testing.assert_close(head.train()(features), head.eval()(features))


def test_queries_are_saved_but_not_trained() -> None:
    head, other = _head(80, 20), MLDecoder(80, in_features=24, query_num=20, embed_dim=16, feedforward_dim=32)
    assert "queries" in head.state_dict() and "queries" not in dict(head.named_parameters())
    other.load_state_dict(head.state_dict())
    features = torch.randn(2, 5, 24)
    expected = head(features)
    assert torch.equal(other.eval()(features), expected)
    assert torch.equal(copy.deepcopy(head)(features), expected)


def test_evaluation_follows_weights_written_behind_autograds_back() -> None:
    head, features = _head(80, 20), torch.randn(2, 5, 24)
    with torch.no_grad():
        before = head(features)
        head.norm1.weight.data.mul_(-1.0)
        assert not torch.allclose(head(features), before)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_logits_are_float32_and_gradients_finite_in_half_precision(how: str, half: torch.dtype) -> None:
    head, features = _head(80, 20), torch.randn(2, 5, 24)
    expected = head(features)
    if how == "weights":
        head, features = head.to(half), features.to(half)
    with torch.autocast("cpu", dtype=half, enabled=how == "autocast"):
        logits = head(features)
        trained = head.train()(30 * features)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.to(half).float())
    torch.testing.assert_close(logits, expected, atol=0.1, rtol=0.1)
    trained.sum().backward()
    assert trained.isfinite().all() and all(p.grad.isfinite().all() for p in head.parameters())


def test_float64_stays_float64() -> None:
    assert _head(8).double()(torch.randn(1, 24, 2, 2, dtype=torch.float64)).dtype == torch.float64


def test_export_with_a_dynamic_batch_gives_the_same_logits() -> None:
    head = _head(81, 20)
    batch = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(head, (torch.randn(2, 24, 3, 3),), dynamic_shapes=batch)
    features = torch.randn(5, 24, 3, 3)
    torch.testing.assert_close(program.module()(features), head(features))


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("training", [True, False])
def test_compiles_to_one_graph(mode: Any, training: bool) -> None:
    torch._dynamo.reset()
    with mode():
        explanation = torch._dynamo.explain(_head(81, 20).train(training))(torch.randn(2, 24, 3, 3))
    assert (explanation.graph_count, explanation.graph_break_count) == (1, 0)


def test_dead_queries_warn_and_name_the_sizes_that_make_sense() -> None:
    with pytest.warns(UserWarning, match=r"query_num=60 only 40 do .* query_num=40 .*: 20, 27, 40, 80\."):
        MLDecoder(80, in_features=8, query_num=60, embed_dim=16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MLDecoder(80, in_features=8, query_num=20, embed_dim=16)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="must hold, but got query_num=100, num_classes=80"):
        MLDecoder(80, in_features=8, query_num=100)
    with pytest.raises(ValueError, match="divisible"):
        MLDecoder(80, in_features=8, embed_dim=20)
    for shape in [(2, 24), (2, 23, 3, 3), (2, 24, 5), (2, 24, 1, 3, 3)]:
        with pytest.raises(ValueError, match="features must be"):
            _head(80)(torch.randn(shape))
