"""What a decision is worth: precision, recall and F1 of predicted labels, and accuracy where one class is right.

A class is predicted for an image where its score is above a threshold (strictly, as in the ML-Decoder authors'
validate.py) or among the image's highest. From the numbers of true positives, predictions and positives:

- `class_*` (CP, CR, CF1) are means of each class's own precision, recall and F1, over all classes;
- `overall_*` (OP, OR, OF1) are those of the numbers summed over all classes;
- a ratio without a denominator is 0: the precision of a class that is never predicted, the recall of one
  without positives. Both count in the means.

This is validate.py of Alibaba-MIIL/ML_Decoder, and scikit-learn's macro and micro averages with
`zero_division=0`. Tables in the line of ML-GCN (arXiv 1904.03582) print another CF1, the harmonic mean of CP and
CR (`class_f1_of_means`), and their top-3 rows drop those of the three that do not reach the threshold. F1@k of
zero-shot tables (NUS-WIDE, arXiv 1605.09759) is `overall_f1` of the top k; images without any label count here,
while some code drops them first (that of arXiv 2105.05926).

The threshold is on the scale of the scores: 0.5 for probabilities is 0 for logits.
Shape letters: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trainables.metrics import average_precision, checked, checked_scores, to_array

if TYPE_CHECKING:
    from trainables.metrics import Matrix


@dataclass(frozen=True)
class PrecisionRecallF1:
    """Means over the classes (`class_*`) and values of all of them pooled (`overall_*`), each in [0, 1]."""

    class_precision: float
    class_recall: float
    class_f1: float
    overall_precision: float
    overall_recall: float
    overall_f1: float

    @property
    def class_f1_of_means(self) -> float:
        """Harmonic mean of class_precision and class_recall: the CF1 of ML-GCN and of most tables after it."""
        total = self.class_precision + self.class_recall
        return 2 * self.class_precision * self.class_recall / total if total else 0.0


@dataclass(frozen=True)
class ClassRow:
    """One class of a report; all but the counts are in [0, 1]."""

    name: str
    average_precision: float | None
    """None for a class without positives, about which a ranking says nothing."""
    num_positive: int
    num_predicted: int
    precision: float
    recall: float
    f1: float


def precision_recall_f1(scores: Matrix, labels: Matrix, *, threshold: float = 0.5) -> PrecisionRecallF1:
    """Of the classes above `threshold`, for scores (N, K) and 0/1 labels (N, K).

    Raises ValueError on shapes that differ, labels other than 0 and 1, scores that are not finite, no positive
    label at all, or scores beyond [0, 1] with a threshold between 0 and 1.
    """
    scores_NK, labels_NK = checked(scores, labels)
    return _summary(_above(scores_NK, threshold), labels_NK)


def top_k_precision_recall_f1(
    scores: Matrix, labels: Matrix, *, top_k: int = 3, threshold: float | None = None
) -> PrecisionRecallF1:
    """Of each image's `top_k` highest scores, or all where there are fewer; equal ones in the order of classes.

    With a `threshold`, only those of them above it are predicted. Raises ValueError as `precision_recall_f1`
    does, and for a top_k below 1.
    """
    scores_NK, labels_NK = checked(scores, labels)
    predicted_NK = _highest(scores_NK, top_k)
    if threshold is not None:
        predicted_NK &= _above(scores_NK, threshold)
    return _summary(predicted_NK, labels_NK)


def per_class(scores: Matrix, labels: Matrix, classes: Sequence[str], *, threshold: float = 0.5) -> list[ClassRow]:
    """A row for each of `classes`, the names of the columns of scores (N, K) and 0/1 labels (N, K).

    Average precision has grouped ties (`trainables.metrics`); the means of precision, recall and f1 over the
    rows are `class_precision`, `class_recall` and `class_f1`. Raises ValueError as `precision_recall_f1` does
    (but for absent positives), and where the number of names is not K.
    """
    scores_NK, labels_NK = checked(scores, labels)
    if len(classes) != labels_NK.shape[1]:
        raise ValueError(
            f"every class must have a name, but got {len(classes)} names for {labels_NK.shape[1]} columns. "
            f"Take both from the same data set."
        )
    predicted_NK = _above(scores_NK, threshold)
    columns = zip(
        classes,
        average_precision(scores_NK, labels_NK),
        labels_NK.sum(axis=0),
        predicted_NK.sum(axis=0),
        *_ratios(*_counts(predicted_NK, labels_NK)),
        strict=True,
    )
    return [
        ClassRow(
            name=name,
            average_precision=float(ap) if num_positive else None,
            num_positive=int(num_positive),
            num_predicted=int(num_predicted),
            precision=float(precision),
            recall=float(recall),
            f1=float(f1),
        )
        for name, ap, num_positive, num_predicted, precision, recall, f1 in columns
    ]


def accuracy(scores: Matrix, labels: Matrix, top_k: Sequence[int] = (1, 5)) -> tuple[float, ...]:
    """Share of images whose one true class is among the k highest of scores (N, K), for each k of `top_k`.

    `labels` are class indices (N,) or one-hot (N, K). A tie counts against the model: every class that scores as
    high as the true one ranks before it, so a constant score gets nothing right at k < K. With k >= K every
    image is right. Raises ValueError on scores that are not finite, labels that do not name one class an image,
    no image at all, or a k below 1.
    """
    scores_NK = checked_scores(scores)
    truth_N = _class_indices(to_array(labels), scores_NK.shape)
    if not len(scores_NK) or min(top_k) < 1:
        raise ValueError(
            f"there must be an image, and every k of top_k at least 1, but got {len(scores_NK)} images and "
            f"top_k={tuple(top_k)}."
        )
    true_score_N1 = np.take_along_axis(scores_NK, truth_N[:, None], axis=1)
    rank_N = (scores_NK >= true_score_N1).sum(axis=1)
    return tuple(float((rank_N <= k).mean()) for k in top_k)


def _above(scores_NK: NDArray[np.floating], threshold: float) -> NDArray[np.bool_]:
    if 0 < threshold < 1 and scores_NK.size and (scores_NK.min() < 0 or scores_NK.max() > 1):
        raise ValueError(
            f"scores must be in [0, 1] for threshold={threshold}, but they reach from {scores_NK.min():g} to "
            f"{scores_NK.max():g}. Take the sigmoid of logits first, or use threshold=0 for them."
        )
    return scores_NK > threshold


def _highest(scores_NK: NDArray[np.floating], top_k: int) -> NDArray[np.bool_]:
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, but got {top_k}.")
    num_classes = scores_NK.shape[1]
    if top_k >= num_classes:
        return np.ones(scores_NK.shape, dtype=np.bool_)
    last_N1 = np.partition(scores_NK, num_classes - top_k, axis=1)[:, num_classes - top_k, None]
    higher_NK, equal_NK = scores_NK > last_N1, scores_NK == last_N1
    num_left_N1 = top_k - higher_NK.sum(axis=1, keepdims=True)
    return higher_NK | (equal_NK & (equal_NK.cumsum(axis=1) <= num_left_N1))


def _counts(
    predicted_NK: NDArray[np.bool_], labels_NK: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """True positives, predictions and positives of each class: (K,), (K,), (K,)."""
    return (predicted_NK & labels_NK).sum(axis=0), predicted_NK.sum(axis=0), labels_NK.sum(axis=0)


def _ratios(true_positives: Any, predicted: Any, positive: Any) -> tuple[Any, Any, Any]:
    """Precision, recall and F1 of counts (or of arrays of them); 0 where nothing was predicted, or is positive."""
    precision = true_positives / np.maximum(predicted, 1)
    recall = true_positives / np.maximum(positive, 1)
    return precision, recall, 2 * true_positives / np.maximum(predicted + positive, 1)


def _summary(predicted_NK: NDArray[np.bool_], labels_NK: NDArray[np.bool_]) -> PrecisionRecallF1:
    counts = _counts(predicted_NK, labels_NK)
    if not counts[2].any():
        raise ValueError(
            f"at least one label must be positive, but none of {labels_NK.size} is. "
            f"Check that the labels belong to these images, or evaluate more of them."
        )
    of_classes = [float(ratio_K.mean()) for ratio_K in _ratios(*counts)]
    overall = [float(ratio) for ratio in _ratios(*(count_K.sum() for count_K in counts))]
    return PrecisionRecallF1(*of_classes, *overall)


def _class_indices(labels: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.int64]:
    num_images, num_classes = shape
    if labels.shape == shape and ((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all():
        return labels.argmax(axis=1)
    is_index = labels.shape == (num_images,) and np.issubdtype(labels.dtype, np.integer)
    if is_index and not (labels.size and (labels.min() < 0 or labels.max() >= num_classes)):
        return labels.astype(np.int64)
    raise ValueError(
        f"labels must be one-hot of shape {shape} or class indices below {num_classes} of shape ({num_images},), "
        f"but got {labels.dtype} of shape {labels.shape}, from {labels.min(initial=0)} to {labels.max(initial=0)}. "
        f"Images with several classes need mean_average_precision."
    )
