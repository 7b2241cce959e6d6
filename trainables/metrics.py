"""Average precision per class and its mean, the measure of multi-label classification.

Published numbers use several definitions, which agree only without tied scores and empty classes:

- scikit-learn, torchmetrics, timm: `ties="grouped"`, `empty="zero"`;
- PaddleClas: `ties="stable"` within a batch, `empty="skip"`, and `kind="11point"` as an option;
- the ML-Decoder authors: the order of ties is left to the sort, `empty="zero"`.

The default groups ties, so that the result does not depend on the order of images, and skips classes without
a positive, about which a ranking says nothing. Pass float32 logits: in bfloat16 most scores of a class are
tied.

Shape letters: N images, K classes, P positives of one class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # arrays need no torch, and its import takes seconds
    import torch

    Matrix = NDArray[Any] | torch.Tensor
Ties = Literal["grouped", "stable"]
Empty = Literal["skip", "zero"]
Kind = Literal["integral", "11point"]


def average_precision(
    scores: Matrix,
    labels: Matrix,
    *,
    ties: Ties = "grouped",
    empty: Empty = "skip",
    kind: Kind = "integral",
) -> NDArray[np.float64]:
    """Average precision of each class, (K,) in [0, 1], of scores (N, K) and 0/1 labels (N, K).

    `ties`: "grouped" lets equal scores share one threshold; "stable" ranks them in the order given.
    `empty`: a class without a positive is NaN with "skip", 0 with "zero".
    `kind`: "integral" sums precision times the step in recall at every threshold; "11point" averages, over
    recalls 0, 0.1, ..., 1, the best precision at that recall or beyond.
    Raises ValueError on shapes that differ, labels other than 0 and 1, scores that are not finite.
    """
    _check_choice("ties", ties, ("grouped", "stable"))
    _check_choice("empty", empty, ("skip", "zero"))
    _check_choice("kind", kind, ("integral", "11point"))
    scores_NK, labels_NK = checked(scores, labels)
    scores_KN, labels_KN = np.ascontiguousarray(scores_NK.T), np.ascontiguousarray(labels_NK.T)
    result_K = np.full(len(scores_KN), np.nan if empty == "skip" else 0.0)
    of_curve = _integral if kind == "integral" else _eleven_point
    for k in np.flatnonzero(labels_KN.any(axis=1)):
        result_K[k] = of_curve(*_curve(scores_KN[k], labels_KN[k], ties))
    return result_K


def mean_average_precision(
    scores: Matrix,
    labels: Matrix,
    *,
    ties: Ties = "grouped",
    empty: Empty = "skip",
    kind: Kind = "integral",
) -> float:
    """mAP in [0, 1]: the mean of `average_precision` over the classes that it does not skip.

    Raises ValueError as `average_precision` does, and when every class is skipped.
    """
    per_class_K = average_precision(scores, labels, ties=ties, empty=empty, kind=kind)
    used_K = per_class_K[~np.isnan(per_class_K)]
    _require_positive(used_K.size, per_class_K.size)
    return float(used_K.mean())


def chance_level(labels: Matrix) -> float:
    """mAP of a model that knows nothing, in [0, 1]: the mean positive rate over classes with a positive.

    Exact for a constant score with grouped ties. Random scores approach it with many positives; a class
    with few among N images stays about ln(N) / N above. Raises ValueError without any positive.
    """
    labels_NK = _checked_labels(labels)
    num_positive_K = labels_NK.sum(axis=0)
    used_K = num_positive_K[num_positive_K > 0]
    _require_positive(used_K.size, num_positive_K.size)
    return float(used_K.mean()) / labels_NK.shape[0]


def checked(scores: Matrix, labels: Matrix) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """Scores (N, K) as a floating array and 0/1 labels (N, K) as a boolean one.

    Raises ValueError on shapes that differ, labels other than 0 and 1, scores that are not finite.
    """
    scores_NK, labels_NK = checked_scores(scores), _checked_labels(labels)
    if scores_NK.shape != labels_NK.shape:
        raise ValueError(
            f"scores and labels must have the same shape, but got {scores_NK.shape} and {labels_NK.shape}. "
            f"Both are (images, classes)."
        )
    return scores_NK, labels_NK


def _curve(
    scores_N: NDArray[np.floating], labels_N: NDArray[np.bool_], ties: Ties
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """True positives and precision at the score of each positive, from the highest to the lowest: (P,), (P,).

    Recall rises at these thresholds only, and at an equal recall no other has a higher precision.
    """
    if ties == "stable":
        ranks_P = np.flatnonzero(labels_N[np.argsort(-scores_N, kind="stable")]) + 1
        true_positives_P = np.arange(1, ranks_P.size + 1)
        return true_positives_P, true_positives_P / ranks_P
    # Sorting values, not indices, and counting by binary search takes a third of an argsort's time.
    positives_P = np.sort(scores_N[labels_N])
    true_positives_P = _num_at_least(positives_P[::-1], positives_P)
    return true_positives_P, true_positives_P / _num_at_least(positives_P[::-1], np.sort(scores_N))


def _num_at_least(thresholds_P: NDArray[np.floating], ascending_N: NDArray[np.floating]) -> NDArray[np.int64]:
    return ascending_N.size - np.searchsorted(ascending_N, thresholds_P, side="left")


def _integral(true_positives_P: NDArray[np.int64], precision_P: NDArray[np.float64]) -> float:
    gained_P = np.diff(true_positives_P, prepend=0)
    return float(gained_P @ precision_P) / int(true_positives_P[-1])


def _eleven_point(true_positives_P: NDArray[np.int64], precision_P: NDArray[np.float64]) -> float:
    best_beyond_P = np.maximum.accumulate(precision_P[::-1])[::-1]
    # In integers: the float 3 * 0.1 lies above 3/10 and would miss a recall of exactly that.
    first_11 = np.searchsorted(10 * true_positives_P, np.arange(11) * true_positives_P[-1])
    return float(best_beyond_P[first_11].mean())


def checked_scores(scores: Matrix) -> NDArray[np.floating]:
    """Scores (N, K) as a floating array; ValueError where they are not finite or have another shape."""
    scores_NK = _matrix("scores", scores)
    if not np.issubdtype(scores_NK.dtype, np.floating):
        scores_NK = scores_NK.astype(np.float64)
    num_bad = scores_NK.size - np.count_nonzero(np.isfinite(scores_NK))
    if num_bad:
        raise ValueError(
            f"scores must be finite, but {num_bad} of {scores_NK.size} are not. "
            f"The model has diverged, or its logits overflowed in half precision."
        )
    return scores_NK


def _checked_labels(labels: Matrix) -> NDArray[np.bool_]:
    labels_NK = _matrix("labels", labels)
    positive_NK = labels_NK == 1
    is_bad_NK = ~(positive_NK | (labels_NK == 0))
    if is_bad_NK.any():
        raise ValueError(
            f"labels must be 0 or 1, but {np.count_nonzero(is_bad_NK)} of {labels_NK.size} are not, "
            f"the first is {labels_NK[is_bad_NK][0]}. Drop or decide unknown labels first."
        )
    return positive_NK


def to_array(values: Matrix) -> NDArray[Any]:
    """An array of the values of an array or a tensor, without gradient and on the CPU."""
    if hasattr(values, "detach"):  # a tensor, so torch has been imported already
        import torch

        values = values.detach().cpu()
        # NumPy has no bfloat16; every bfloat16 is a float32.
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)


def _matrix(name: str, values: Matrix) -> NDArray[Any]:
    values_NK = to_array(values)
    if values_NK.ndim != 2:
        raise ValueError(f"{name} must be (images, classes), but got shape {values_NK.shape}.")
    return values_NK


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, but got {value!r}.")


def _require_positive(num_used: int, num_classes: int) -> None:
    if num_used == 0:
        raise ValueError(
            f"at least one class must have a positive label, but none of {num_classes} has. "
            f"Check that the labels belong to these images, or evaluate more of them."
        )
