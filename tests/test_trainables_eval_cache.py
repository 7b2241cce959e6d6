"""What evaluation keeps of the head: computed once, and never stale."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainables import cpu_decoder
from trainables.decoder import Decoder
from trainables.ml_decoder import MLDecoder
from trainables.word_decoder import WordDecoder

torch.set_num_threads(1)

SIZE: dict[str, Any] = {"in_features": 24, "embed_dim": 16, "num_heads": 2, "feedforward_dim": 32}


def _heads() -> dict[str, Decoder]:
    torch.manual_seed(0)
    return {"queries": MLDecoder(8, **SIZE).eval(), "words": WordDecoder(torch.randn(5, 6), **SIZE).eval()}


@pytest.fixture(autouse=True, params=["the CPU's operations", "the plain layer"])
def counter(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each run of the query projection, in both ways to compute it."""
    calls: list[int] = []
    if request.param == "the plain layer":
        monkeypatch.setattr(cpu_decoder, "applies", lambda features: False)
        monkeypatch.setattr(Decoder, "_noisy", _counted(Decoder._noisy, calls))
    else:
        monkeypatch.setattr(cpu_decoder, "_project", _counted(cpu_decoder._project, calls))
    return calls


def _counted(function: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    def counted(*args: Any) -> Any:
        calls.append(1)
        return function(*args)

    return counted


def _fresh(head: Decoder, features: Tensor) -> Tensor:
    """What a head that has kept nothing says."""
    return copy.deepcopy(head)(features)


@pytest.mark.parametrize("kind", ["queries", "words"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_query_projection_runs_once_in_evaluation(kind: str, mode: Callable[[], Any], counter: list[int]) -> None:
    head, features = _heads()[kind], torch.randn(3, 24, 2, 2)
    with torch.enable_grad():
        expected = head(features).detach()
    with mode():
        for size in (3, 1, 3):
            torch.testing.assert_close(head(features[:size]), expected[:size], atol=1e-6, rtol=1e-6)
    assert len(counter) == 2  # with gradients, and the first one without


@pytest.mark.parametrize("kind", ["queries", "words"])
def test_training_and_gradients_keep_nothing(kind: str, counter: list[int]) -> None:
    head, features = _heads()[kind], torch.randn(2, 24, 2, 2)
    for _ in range(2):
        head(features).sum().backward()
    with torch.no_grad():
        head.train()(features)
        head.train()(features)
    assert len(counter) == 4
    assert head.query_proj.weight.grad is not None


def _step(head: Decoder) -> None:
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.1, foreach=True)
    with torch.enable_grad():
        head(torch.randn(2, 24, 2, 2)).square().sum().backward()
    optimizer.step()


def _load(head: Decoder) -> None:
    head.load_state_dict({name: tensor + 0.5 for name, tensor in head.state_dict().items()})


CHANGES: dict[str, Callable[[Decoder], Any]] = {
    "an optimizer's step": _step,
    "load_state_dict": _load,
    "copy_ under no_grad": lambda head: head.norm1.weight.copy_(torch.randn(16)),
    "a write through .data": lambda head: head.norm1.weight.data.mul_(-1.0),
    "a write through .data of a matrix": lambda head: head.query_proj.weight.data.mul_(-1.0),
    "other storage": lambda head: setattr(head.query_proj.weight, "data", torch.randn(16, 16)),
    "another parameter": lambda head: setattr(head.query_proj, "bias", nn.Parameter(torch.randn(16))),
    "a written buffer": lambda head: next(head.buffers()).neg_(),
    "another type": lambda head: head.double(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["queries", "words"])
def test_evaluation_follows_every_change_of_the_weights(kind: str, change: str) -> None:
    head, features = _heads()[kind], torch.randn(2, 24, 2, 2)
    with torch.no_grad():
        before = head(features)
        CHANGES[change](head)
        features = features.to(head.norm1.weight.dtype)
        after = head(features)
        assert torch.equal(after, _fresh(head, features))
    assert after.dtype != before.dtype or not torch.allclose(after, before)


def test_the_changed_back_weights_of_a_finite_difference_are_followed() -> None:
    head, features = _heads()["queries"], torch.randn(2, 24, 2, 2)
    with torch.no_grad():
        before = head(features)
        head.query_proj.weight.data.add_(1.0)
        head(features)
        head.query_proj.weight.data.sub_(1.0)
        torch.testing.assert_close(head(features), before, atol=1e-4, rtol=1e-4)


def test_other_words_are_asked_without_a_trace_of_the_last() -> None:
    head: Any = _heads()["words"]
    features = torch.randn(2, 24, 2, 2)
    with torch.no_grad():
        own = head(features)
        for _ in range(20):  # the allocator hands the same memory to the next words
            words = torch.nn.functional.normalize(torch.randn(5, 6))
            assert torch.equal(head(features, words), _fresh_words(head, features, words))
            del words
        assert torch.equal(head(features), own)


def _fresh_words(head: Any, features: Tensor, words: Tensor) -> Tensor:
    return copy.deepcopy(head)(features, words)


def test_autocast_has_its_own_result() -> None:
    head, features = _heads()["queries"], torch.randn(2, 24, 2, 2)
    with torch.no_grad():
        exact = head(features)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = head(features)
            assert torch.equal(half, _fresh(head, features))
        assert torch.equal(head(features), exact)
    assert not torch.equal(half, exact)


def test_what_inference_mode_kept_serves_no_grad_and_gradients_again() -> None:
    head, features = _heads()["queries"], torch.randn(2, 24, 2, 2)
    with torch.inference_mode():
        expected = head(features).clone()
    with torch.no_grad():
        assert torch.equal(head(features), expected)
    head(features).sum().backward()
    assert head.query_proj.weight.grad is not None


def test_copies_and_pickles_carry_nothing() -> None:
    head, features = _heads()["queries"], torch.randn(2, 24, 2, 2)
    with torch.no_grad():
        expected = head(features)
        size = len(pickle.dumps(MLDecoder(8, **SIZE)))
        assert abs(len(pickle.dumps(head)) - size) < 64
        for twin in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
            twin.norm1.weight.data.mul_(-1.0)
            assert not torch.allclose(twin(features), expected)
        assert torch.equal(head(features), expected)


def test_a_head_without_values_can_be_run() -> None:
    with torch.device("meta"), torch.no_grad():
        head = MLDecoder(8, **SIZE).eval()
        assert head(torch.empty(2, 24, 2, 2)).shape == head(torch.empty(2, 24, 2, 2)).shape == (2, 8)
