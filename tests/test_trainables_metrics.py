"""Average precision against scikit-learn, published worked examples, and the definition spelled out."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from trainables.metrics import average_precision, chance_level, mean_average_precision


def _column(*values: float) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)[:, None]


def _random(num_images: int = 300, num_classes: int = 12, decimals: int | None = None) -> tuple[Any, Any]:
    generator = np.random.default_rng(0)
    scores = generator.standard_normal((num_images, num_classes)).astype(np.float32)
    labels = generator.random((num_images, num_classes)) < 0.1
    labels[0] = True
    return (scores if decimals is None else scores.round(decimals)), labels


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_grouped_equals_scikit_learn_with_and_without_ties(decimals: int | None) -> None:
    scores, labels = _random(decimals=decimals)
    expected = [average_precision_score(y, s) for y, s in zip(labels.T, scores.T, strict=True)]
    np.testing.assert_allclose(average_precision(scores, labels), expected, rtol=0, atol=1e-12)
    macro = average_precision_score(labels, scores, average="macro")
    assert mean_average_precision(scores, labels) == pytest.approx(macro, abs=1e-12)


def test_ties_do_not_matter_without_ties() -> None:
    scores, labels = _random()
    grouped, stable = (average_precision(scores, labels, ties=ties) for ties in ("grouped", "stable"))
    np.testing.assert_array_equal(grouped, stable)


def test_stable_ranks_equal_scores_in_the_order_given() -> None:
    scores, labels = _random(decimals=1)
    order = np.lexsort((np.broadcast_to(np.arange(300)[:, None], scores.shape), -scores), axis=0)
    ranks = order.argsort(axis=0)
    stable = average_precision(scores, labels, ties="stable")
    expected = [average_precision_score(y, -r) for y, r in zip(labels.T, ranks.T, strict=True)]
    np.testing.assert_allclose(stable, expected, rtol=0, atol=1e-12)
    assert not np.allclose(stable, average_precision(scores, labels))


@pytest.mark.parametrize(
    "scores, labels, options, expected",
    [
        ((0.9, 0.8, 0.7, 0.6), (1, 0, 1, 0), {}, 0.8333333333),
        ((0.9, 0.8, 0.7, 0.6), (1, 0, 1, 0), {"kind": "11point"}, 0.848485),
        ((0.9, 0.8, 0.7, 0.6, 0.5), (1, 0, 1, 1, 0), {}, 0.805556),
        ((0.9, 0.8, 0.7, 0.6, 0.5), (1, 0, 1, 1, 0), {"kind": "11point"}, 0.840909),
        ((0.5, 0.5, 0.5, 0.5), (1, 1, 0, 0), {}, 0.5),
        ((0.5, 0.5, 0.5, 0.5), (0, 0, 1, 1), {}, 0.5),
        ((0.5, 0.5, 0.5, 0.5), (1, 1, 0, 0), {"ties": "stable"}, 1.0),
        ((0.5, 0.5, 0.5, 0.5), (0, 0, 1, 1), {"ties": "stable"}, 0.4166666667),
    ],
)
def test_worked_examples(scores: Any, labels: Any, options: Any, expected: float) -> None:
    (got,) = average_precision(_column(*scores), _column(*labels), **options)
    assert got == pytest.approx(expected, abs=1e-6)


def test_a_class_without_positives_is_skipped_or_zero() -> None:
    scores = np.array([[0.9, 0.2, 0.5], [0.8, 0.9, 0.4], [0.1, 0.3, 0.3]])
    labels = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0]])
    np.testing.assert_allclose(average_precision(scores, labels), [0.8333333, 1.0, np.nan], atol=1e-6)
    zeroed = average_precision(scores, labels, empty="zero")
    np.testing.assert_allclose(zeroed, [0.8333333, 1.0, 0.0], atol=1e-6)
    assert mean_average_precision(scores, labels) == pytest.approx(0.9167, abs=1e-4)
    assert mean_average_precision(scores, labels, empty="zero") == pytest.approx(0.6111, abs=1e-4)


@pytest.mark.parametrize("decimals", [None, 1])
def test_eleven_point_is_its_definition(decimals: int | None) -> None:
    scores, labels = _random(num_images=80, decimals=decimals)
    expected = []
    for s, y in zip(scores.T, labels.T, strict=True):
        chosen = [s >= threshold for threshold in np.unique(s)]
        points = [(10 * y[c].sum(), y[c].mean()) for c in chosen]
        best = [max(p for tenfold, p in points if tenfold >= r * y.sum()) for r in range(11)]
        expected.append(np.mean(best))
    np.testing.assert_allclose(average_precision(scores, labels, kind="11point"), expected, atol=1e-12)


def test_eleven_point_counts_a_recall_of_exactly_three_tenths() -> None:
    # 3 of 10 positives first, then 90 negatives: precision is 1 up to recall 3/10, then 10/100 at most.
    labels = _column(*[1] * 3, *[0] * 90, *[1] * 7)
    scores = _column(*range(100, 0, -1))
    assert average_precision(scores, labels, kind="11point")[0] == pytest.approx((4 * 1.0 + 7 * 0.1) / 11)


def test_float32_scores_one_step_apart_are_not_tied() -> None:
    low = np.float32(0.5)
    scores = np.array([[low], [np.nextafter(low, np.float32(1))]])
    assert average_precision(scores, np.array([[0], [1]]))[0] == 1.0
    wide = np.array([[0.5], [np.nextafter(0.5, 1)]])
    assert average_precision(wide, np.array([[0], [1]]))[0] == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_tensors_and_arrays_agree(dtype: torch.dtype) -> None:
    scores, labels = _random()
    tensor = torch.from_numpy(scores).to(dtype).requires_grad_()
    got = average_precision(tensor, torch.from_numpy(labels).float())
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, average_precision(tensor.detach().double().numpy(), labels))


def test_a_rank_is_all_that_counts() -> None:
    scores, labels = _random()
    moved = scores.astype(np.float64) * 3 - 7
    assert mean_average_precision(moved, labels) == mean_average_precision(scores, labels)


def test_chance_is_what_a_constant_score_reaches() -> None:
    _, labels = _random()
    labels[:, 3] = False
    constant = mean_average_precision(np.zeros(labels.shape), labels)
    assert chance_level(labels) == pytest.approx(constant, abs=1e-12)
    rates = labels.mean(axis=0)
    assert chance_level(torch.from_numpy(labels)) == pytest.approx(rates[rates > 0].mean())


def test_random_scores_stay_near_chance() -> None:
    generator = np.random.default_rng(0)
    labels = generator.random((5000, 20)) < 0.05
    assert mean_average_precision(generator.random(labels.shape), labels) == pytest.approx(
        chance_level(labels), abs=0.01
    )


def test_coco_val2014_takes_well_under_a_second() -> None:
    generator = np.random.default_rng(0)
    scores = generator.standard_normal((40_000, 80)).astype(np.float32)
    labels = generator.random(scores.shape) < 0.04
    start = time.process_time()
    mean_average_precision(scores, labels)
    assert time.process_time() - start < 0.8  # 0.09 s on one idle core; the rest is for a busy one


def test_what_cannot_be_measured_is_refused() -> None:
    ok = np.array([[0.1, 0.2], [0.3, 0.4]])
    labels = np.array([[1, 0], [0, 1]])
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="scores must be finite, but 1 of 4"):
            average_precision(np.array([[0.1, bad], [0.3, 0.4]]), labels)
    for unknown in (-1, 2, 0.5, np.nan):
        with pytest.raises(ValueError, match="labels must be 0 or 1, but 1 of 4"):
            average_precision(ok, np.array([[1, unknown], [0, 1]]))
    with pytest.raises(ValueError, match="same shape"):
        average_precision(ok, labels[:1])
    with pytest.raises(ValueError, match=r"\(images, classes\)"):
        average_precision(ok[0], labels[0])
    with pytest.raises(ValueError, match="ties must be one of grouped, stable"):
        average_precision(ok, labels, ties="first")  # type: ignore[arg-type]
    for nothing in (np.zeros((2, 2)), np.zeros((0, 2))):
        with pytest.raises(ValueError, match="at least one class must have a positive"):
            mean_average_precision(nothing, nothing)
        with pytest.raises(ValueError, match="at least one class must have a positive"):
            chance_level(nothing)
