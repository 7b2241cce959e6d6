"""Precision, recall, F1 and accuracy against scikit-learn, worked examples, and the definitions spelled out."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    precision_recall_fscore_support,
    precision_score,
    recall_score,
    top_k_accuracy_score,
)

from trainables.threshold_metrics import (
    ClassRow,
    PrecisionRecallF1,
    accuracy,
    per_class,
    precision_recall_f1,
    top_k_precision_recall_f1,
)

# Three images of four classes. Above 0.5: a, b | a | a, c. The third class has no true positive, the fourth
# neither a prediction nor a positive.
SCORES = np.array([[0.9, 0.6, 0.1, 0.2], [0.8, 0.4, 0.3, 0.1], [0.7, 0.5, 0.6, 0.4]])
LABELS = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 0]])


def _random(num_images: int = 200, num_classes: int = 9) -> tuple[NDArray[Any], NDArray[Any]]:
    generator = np.random.default_rng(0)
    labels = generator.random((num_images, num_classes)) < 0.2
    labels[:, 4] = False  # no positive
    scores = generator.random(labels.shape).astype(np.float32) * 0.8 + labels * 0.2
    scores[:, 6] *= 0.1  # no prediction
    return scores.astype(np.float32), labels


def _by_scikit_learn(predicted: NDArray[Any], labels: NDArray[Any]) -> list[float]:
    return [
        score(labels, predicted, average=average, zero_division=0)
        for average in ("macro", "micro")
        for score in (precision_score, recall_score, f1_score)
    ]


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.75])
def test_a_threshold_gives_scikit_learns_macro_and_micro_averages(threshold: float) -> None:
    scores, labels = _random()
    got = precision_recall_f1(scores, labels, threshold=threshold)
    assert astuple(got) == pytest.approx(_by_scikit_learn(scores > threshold, labels), abs=1e-12)


@pytest.mark.parametrize("top_k", [1, 3, 8, 9, 50])
def test_the_top_k_give_scikit_learns_macro_and_micro_averages(top_k: int) -> None:
    scores, labels = _random()
    ranks = (-scores).argsort(axis=1).argsort(axis=1)
    got = top_k_precision_recall_f1(scores, labels, top_k=top_k)
    assert astuple(got) == pytest.approx(_by_scikit_learn(ranks < top_k, labels), abs=1e-12)


def test_a_worked_example() -> None:
    got = precision_recall_f1(SCORES, LABELS)
    # Precision of the classes: 2/3, 1, 0, 0; recall: 1, 1/2, 0, 0; F1: 4/5, 2/3, 0, 0. 3 of 5 predictions hit.
    expected = PrecisionRecallF1(5 / 12, 3 / 8, 11 / 30, 3 / 5, 3 / 5, 3 / 5)
    assert astuple(got) == pytest.approx(astuple(expected))
    assert got.class_f1_of_means == pytest.approx(2 * (5 / 12) * (3 / 8) / (5 / 12 + 3 / 8))


def test_a_worked_example_of_the_top_two() -> None:
    # a, b | a, b | a, c: precision 2/3, 1/2, 0, 0; recall 1, 1/2, 0, 0; F1 4/5, 1/2, 0, 0; 3 of 6 hit 3 of 5.
    got = top_k_precision_recall_f1(SCORES, LABELS, top_k=2)
    assert astuple(got) == pytest.approx((7 / 24, 3 / 8, 13 / 40, 1 / 2, 3 / 5, 6 / 11))


def test_the_top_two_above_a_threshold_are_fewer() -> None:
    # a, b | a | a, c: the second image's b (0.4) is below, the third's b (0.5) above but not among the two.
    got = top_k_precision_recall_f1(SCORES, LABELS, top_k=2, threshold=0.45)
    assert (got.overall_precision, got.overall_recall) == (3 / 5, 3 / 5)
    assert precision_recall_f1(SCORES, LABELS, threshold=0.45).overall_precision == 4 / 6


def test_a_score_at_the_threshold_is_not_above_it() -> None:
    got = precision_recall_f1(np.array([[0.5, 0.75]]), np.array([[1, 1]]))
    assert got.overall_recall == 0.5


def test_equal_scores_are_taken_in_the_order_of_classes() -> None:
    scores, labels = np.array([[0.2, 0.7, 0.7, 0.7, 0.9]]), np.array([[0, 1, 1, 0, 0]])
    assert top_k_precision_recall_f1(scores, labels, top_k=3).overall_recall == 1.0
    moved = top_k_precision_recall_f1(scores, np.array([[0, 0, 1, 1, 0]]), top_k=3)
    assert moved.overall_recall == 0.5


def test_nothing_right_is_zero_not_an_error() -> None:
    nothing = precision_recall_f1(np.zeros((2, 2)), np.eye(2))
    assert astuple(nothing) == (0.0,) * 6 and nothing.class_f1_of_means == 0.0


def test_logits_and_their_sigmoids_agree() -> None:
    scores, labels = _random()
    logits = torch.from_numpy(scores).double().logit()
    assert precision_recall_f1(logits, labels, threshold=0) == precision_recall_f1(scores, labels)
    assert top_k_precision_recall_f1(logits, labels) == top_k_precision_recall_f1(scores, labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_and_arrays_agree(dtype: torch.dtype) -> None:
    scores, labels = _random()
    tensor = torch.from_numpy(scores).to(dtype).requires_grad_()
    array = tensor.detach().float().numpy()
    assert precision_recall_f1(tensor, torch.from_numpy(labels)) == precision_recall_f1(array, labels)
    one_hot = np.eye(9)[labels.argmax(axis=1)]
    assert accuracy(tensor, torch.from_numpy(one_hot)) == accuracy(array, one_hot)


def test_the_rows_of_a_report_are_scikit_learns() -> None:
    scores, labels = _random()
    names = [f"class {k}" for k in range(9)]
    rows = per_class(scores, labels, names, threshold=0.6)
    columns = precision_recall_fscore_support(labels, scores > 0.6, zero_division=0)
    for k, row in enumerate(rows):
        ap = average_precision_score(labels[:, k], scores[:, k]) if k != 4 else None
        assert row.name == names[k]
        assert row.average_precision == (ap if ap is None else pytest.approx(ap, abs=1e-12))
        assert (row.precision, row.recall, row.f1, row.num_positive) == pytest.approx([c[k] for c in columns])
        assert row.num_predicted == (scores[:, k] > 0.6).sum()


def test_the_means_of_the_rows_are_the_class_means() -> None:
    scores, labels = _random()
    rows = per_class(scores, labels, "abcdefghi")
    got = precision_recall_f1(scores, labels)
    assert np.mean([row.precision for row in rows]) == pytest.approx(got.class_precision)
    assert np.mean([row.recall for row in rows]) == pytest.approx(got.class_recall)
    assert np.mean([row.f1 for row in rows]) == pytest.approx(got.class_f1)


def test_a_row_holds_plain_numbers() -> None:
    (row, _, _, absent) = per_class(SCORES, LABELS, ["a", "b", "c", "d"])
    assert row == ClassRow("a", 1.0, 2, 3, pytest.approx(2 / 3), 1.0, pytest.approx(0.8))
    assert absent == ClassRow("d", None, 0, 0, 0.0, 0.0, 0.0)
    assert [type(value) for value in astuple(row)] == [str, float, int, int, float, float, float]


@pytest.mark.parametrize("top_k", [1, 3, 5, 6])
def test_accuracy_equals_scikit_learns(top_k: int) -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 7, 300)
    scores = generator.standard_normal((300, 7)) + 0.8 * np.eye(7)[truth]
    expected = top_k_accuracy_score(truth, scores, k=top_k)
    assert accuracy(scores, truth, top_k=(top_k,)) == (pytest.approx(expected, abs=1e-12),)
    assert 0.2 < expected < 1


def test_labels_may_be_indices_or_one_hot() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 7, 50)
    scores = generator.standard_normal((50, 7))
    for labels in (np.eye(7)[truth], np.eye(7, dtype=np.uint8)[truth], torch.from_numpy(truth)):
        assert accuracy(scores, labels) == accuracy(scores, truth)


def test_a_tie_counts_against_the_model() -> None:
    scores = np.array([[0.5, 0.5, 0.1], [0.5, 0.5, 0.1], [0.2, 0.2, 0.2], [0.1, 0.2, 0.9]])
    assert accuracy(scores, np.array([0, 1, 0, 2]), top_k=(1, 2, 3)) == (0.25, 0.75, 1.0)


def test_more_guesses_than_classes_are_always_right() -> None:
    assert accuracy(np.zeros((3, 4)), np.array([0, 1, 2]), top_k=(3, 4, 5)) == (0.0, 1.0, 1.0)


def test_the_arrays_need_no_torch() -> None:
    code = "import sys, trainables.threshold_metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match=r"in \[0, 1\] for threshold=0\.5, .* from -1 to 3\..*threshold=0"):
        precision_recall_f1(np.array([[-1.0, 3.0]]), np.array([[0, 1]]))
    for judge in (precision_recall_f1, top_k_precision_recall_f1):
        with pytest.raises(ValueError, match="at least one label must be positive, but none of 12"):
            judge(SCORES, np.zeros_like(LABELS))
        with pytest.raises(ValueError, match="labels must be 0 or 1"):
            judge(SCORES, LABELS * 0.5)
        with pytest.raises(ValueError, match="same shape"):
            judge(SCORES, LABELS[:2])
    with pytest.raises(ValueError, match="top_k must be at least 1, but got 0"):
        top_k_precision_recall_f1(SCORES, LABELS, top_k=0)
    with pytest.raises(ValueError, match="got 3 names for 4 columns"):
        per_class(SCORES, LABELS, ["a", "b", "c"])
    for wrong in ([0, 1], [0, 1, 4], [0, 1, -1], [0.0, 1.0, 2.0], LABELS, LABELS * 0.5, np.zeros((3, 4))):
        with pytest.raises(ValueError, match=r"one-hot of shape \(3, 4\) or class indices below 4"):
            accuracy(SCORES, np.array(wrong))
    with pytest.raises(ValueError, match=r"got 0 images and top_k=\(1, 5\)"):
        accuracy(SCORES[:0], np.array([], dtype=np.int64))
    with pytest.raises(ValueError, match=r"got 3 images and top_k=\(0,\)"):
        accuracy(SCORES, np.array([0, 1, 2]), top_k=(0,))
    with pytest.raises(ValueError, match="scores must be finite"):
        accuracy(SCORES * np.nan, np.array([0, 1, 2]))
