"""State dicts of others: the converted weights must compute what the original computes."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.layers import ConvNormAct
from timm.layers import ml_decoder as timm_ml_decoder
from timm.models.tresnet import TResNet
from torch import nn

from tests.weights_helpers import shaken
from trainables import convert
from trainables.ml_decoder import MLDecoder
from trainables.weight_files import Tensors, WeightsError

torch.set_num_threads(1)

CASES = [(80, 80), (80, 20), (81, 20), (80, 60), (10, 1), (1, 1)]
WIDTH, EMBED_DIM = 24, 16


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def timms_head(monkeypatch: pytest.MonkeyPatch) -> type[nn.Module]:
    """timm's head, whose layer is given what nn.TransformerDecoder has asked of a layer since torch 2.1."""
    layer: Any = timm_ml_decoder.TransformerDecoderLayerOptimal
    forward = layer.forward
    monkeypatch.setattr(layer, "self_attn", SimpleNamespace(batch_first=False), raising=False)
    monkeypatch.setattr(layer, "forward", lambda self, target, memory, **hints: forward(self, target, memory))
    return timm_ml_decoder.MLDecoder


def _our_head(state_dict: Tensors, num_classes: int, query_num: int) -> MLDecoder:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dead queries are among the cases
        head = MLDecoder(
            num_classes,
            in_features=WIDTH,
            query_num=query_num,
            embed_dim=EMBED_DIM,
            feedforward_dim=2048,  # fixed in timm's
        )
    head.load_state_dict(state_dict)
    return head.eval()


def _in_the_authors_names(timms: Tensors) -> Tensors:
    """They keep everything under `decoder`; timm only the layers."""
    return {name if ".layers." in name else f"decoder.{name}": tensor for name, tensor in timms.items()}


@pytest.mark.parametrize("source", ["timm", "reference"])
@pytest.mark.parametrize("num_classes, query_num", CASES)
def test_heads_of_timm_and_the_authors_give_the_same_logits(
    timms_head: type[nn.Module], num_classes: int, query_num: int, source: str
) -> None:
    theirs = shaken(timms_head(num_classes, query_num, EMBED_DIM, WIDTH))
    if source == "timm":
        ours = convert.from_timm(theirs.state_dict())
    else:
        ours = convert.from_reference(_in_the_authors_names(theirs.state_dict()))
    features = torch.randn(2, WIDTH, 3, 2)
    expected = theirs(features)
    torch.testing.assert_close(_our_head(ours, num_classes, query_num)(features), expected, atol=1e-5, rtol=1e-5)


def test_queries_beyond_the_classes_are_cut(timms_head: type[nn.Module]) -> None:
    wide = shaken(timms_head(100, 100, EMBED_DIM, WIDTH))
    unclamped = wide.state_dict() | {"duplicate_pooling_bias": wide.duplicate_pooling_bias[:80]}
    features = torch.randn(2, WIDTH, 3, 2)
    for ours in (convert.from_timm(unclamped), convert.from_reference(_in_the_authors_names(unclamped))):
        logits = _our_head(ours, 80, 80)(features)
        torch.testing.assert_close(logits, wide(features)[:, :80], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_classes, query_num", CASES)
def test_heads_round_trip_through_all_formats(num_classes: int, query_num: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        head = shaken(MLDecoder(num_classes, in_features=WIDTH, query_num=query_num, embed_dim=EMBED_DIM))
    ours = head.state_dict()
    for back in (
        convert.from_timm(convert.to_timm(ours)),
        convert.from_reference(convert.to_reference(ours)),
        convert.from_paddle(convert.to_paddle(ours), num_classes=num_classes),
    ):
        assert back.keys() == ours.keys()
        assert all(torch.equal(back[name], tensor) for name, tensor in ours.items())


def test_heads_go_to_timm_and_the_authors_as_theirs(timms_head: type[nn.Module]) -> None:
    ours = shaken(MLDecoder(82, in_features=WIDTH, query_num=17, embed_dim=EMBED_DIM))
    theirs = timms_head(82, 17, EMBED_DIM, WIDTH).eval()
    theirs.load_state_dict(convert.to_timm(ours.state_dict()))
    features = torch.randn(2, WIDTH, 3, 2)
    torch.testing.assert_close(theirs(features), ours(features), atol=1e-5, rtol=1e-5)
    assert convert.to_reference(ours.state_dict()).keys() == _in_the_authors_names(theirs.state_dict()).keys()


def _in_the_authors_tresnet_names(model: nn.Module) -> Tensors:
    """Their convolution and norm are a Sequential, in another Sequential where a blur follows."""
    renames: dict[str, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, ConvNormAct):
            inner = f"{path}.0" if module.aa is not None and path.endswith(("conv1", "conv2")) else path
            renames |= {f"{path}.conv.": f"{inner}.0.", f"{path}.bn.": f"{inner}.1."}
    tensors = {}
    for name, tensor in model.state_dict().items():
        prefix = next((prefix for prefix in renames if name.startswith(prefix)), "")
        tensors[renames.get(prefix, "") + name.removeprefix(prefix)] = tensor
    return tensors


@pytest.mark.parametrize("is_v2", [False, True])
def test_the_authors_tresnet_gets_timms_names_and_its_norms_positive_scales(is_v2: bool) -> None:
    model = shaken(TResNet([1, 2, 1, 2], width_factor=0.25, v2=is_v2, num_classes=5))
    theirs = _in_the_authors_tresnet_names(model)
    assert {"body.conv1.0.weight", "body.layer2.1.conv2.1.weight", "head.fc.weight"} <= theirs.keys()
    assert any(".0.0.weight" in name for name in theirs)
    theirs["body.conv1.1.weight"].neg_()  # in-place ABN uses |weight| + eps
    ours = convert.from_reference(theirs)
    expected = {convert.TRUNK + n: t for n, t in model.state_dict().items() if not n.startswith("head.")}
    expected |= {f"head.linear.{kind}": getattr(model.head.fc, kind).data for kind in ("weight", "bias")}
    assert ours.keys() == expected.keys()
    for name, tensor in ours.items():
        is_scale = name.endswith("bn.weight")
        assert torch.equal(tensor, expected[name].abs() + 1e-5 if is_scale else expected[name]), name


@pytest.mark.parametrize("prefix", ["fc.", "head.", "classifier."])
@pytest.mark.parametrize("source", ["timm", "reference"])
def test_a_whole_models_head_is_found_wherever_it_hangs(timms_head: type[nn.Module], source: str, prefix: str) -> None:
    head: Tensors = timms_head(6, 3, EMBED_DIM, WIDTH).state_dict()
    theirs = head
    read: Any = convert.from_timm
    write: Any = convert.to_timm
    if source == "reference":
        read, write, theirs = convert.from_reference, convert.to_reference, _in_the_authors_names(head)
    body = {"conv1.weight": torch.randn(2, 3), "layer1.0.fc.weight": torch.randn(2, 2)}
    whole = body | {prefix + name: tensor for name, tensor in theirs.items()}
    ours = read(whole)
    assert {n: t for n, t in ours.items() if n.startswith("backbone.")}.keys() == {f"backbone.trunk.{n}" for n in body}
    _our_head(convert.under("head.", ours), 6, 3)
    assert read(whole, part="backbone") == {f"backbone.trunk.{n}": t for n, t in body.items()}
    back = write(ours, classifier=prefix[:-1])
    assert back.keys() == whole.keys() and all(torch.equal(back[n], t) for n, t in whole.items())


@pytest.mark.parametrize("name", ["fc", "head.fc", "classifier", "head", "last_linear"])
def test_a_linear_classifier_is_a_pooling_head_of_ours(name: str) -> None:
    weight, bias, norm = torch.randn(5, 4), torch.randn(5), torch.randn(4)
    whole = {f"{name}.weight": weight, f"{name}.bias": bias, "head.norm.weight": norm}
    ours = convert.from_timm(whole)
    assert ours.keys() == {"head.linear.weight", "head.linear.bias", "backbone.trunk.head.norm.weight"}
    assert torch.equal(ours["head.linear.weight"], weight)
    assert convert.to_timm(ours, classifier=name).keys() == whole.keys()
    as_convolution = convert.from_timm(whole | {f"{name}.weight": weight[..., None, None]})
    assert torch.equal(as_convolution["head.linear.weight"], weight)
    assert convert.from_timm(whole, part="backbone").keys() == {"backbone.trunk.head.norm.weight"}


def test_converted_heads_can_be_saved(timms_head: type[nn.Module], tmp_path: Any) -> None:
    ours = convert.from_timm(timms_head(81, 20, EMBED_DIM, WIDTH).state_dict())
    for head in (ours, convert.to_timm(ours), convert.to_reference(ours), convert.to_paddle(ours)):
        save_file(head, tmp_path / "head.safetensors")


def test_heads_that_ours_cannot_be_are_refused_by_name(timms_head: type[nn.Module]) -> None:
    good: Tensors = timms_head(6, 3, EMBED_DIM, WIDTH).state_dict()
    zero_shot = _in_the_authors_names(good) | {"wordvec_proj.weight": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"0 are missing \(\) and 1 unknown \(wordvec_proj.weight\)"):
        convert.from_reference(zero_shot)
    deep = good | {"decoder.layers.1.norm1.weight": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"1 unknown \(decoder.layers.1.norm1.weight\)"):
        convert.from_timm(deep)
    with pytest.raises(WeightsError, match=r"1 are missing \(query_embed.weight\)"):
        convert.from_timm({name: tensor for name, tensor in good.items() if name != "query_embed.weight"})
    with pytest.raises(WeightsError, match=r"must be \(3, 16, 2\), but is \(3, 16, 5\)"):
        convert.from_timm(good | {"duplicate_pooling": torch.zeros(3, EMBED_DIM, 5)})
    two = {f"{p}.{name}": tensor for p in ("fc", "head") for name, tensor in good.items()}
    with pytest.raises(WeightsError, match="one ML-Decoder head"):
        convert.from_timm(two)
    with pytest.raises(WeightsError, match=r"under backbone\.trunk\."):
        convert.to_timm(good)
