"""Scores of a whole split, each image counted exactly once, whatever the number of workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from trainables import metrics
from trainables.threshold_metrics import accuracy

Prepare = Callable[[Any], torch.Tensor]


class EvaluationError(RuntimeError):
    """The evaluated images are not the split's images, each once."""


@dataclass(frozen=True)
class Scored:
    """Logits of some images: image_ids (N,) int64, logits (N, K) float32, labels (N, K) uint8."""

    image_ids: np.ndarray
    logits: np.ndarray
    labels: np.ndarray


@torch.inference_mode()
def score(model: nn.Module, batches: Iterable[Mapping[str, Any]], prepare: Prepare, num_classes: int) -> Scored:
    """Run `model` in eval mode over this worker's batches; logits stay float32, on which AP ranks."""
    was_training = model.training
    model.eval()
    ids, logits, labels = [np.empty(0, np.int64)], [np.empty((0, num_classes), np.float32)], []
    labels.append(np.empty((0, num_classes), np.uint8))
    for batch in batches:
        ids.append(np.asarray(batch["image_id"]))
        logits.append(model(prepare(batch["image"])).float().cpu().numpy())
        labels.append(np.asarray(batch["labels"]))
    model.train(was_training)
    return Scored(np.concatenate(ids), np.concatenate(logits), np.concatenate(labels))


def judge(scored: Scored, task: str, unseen: Sequence[int] = ()) -> dict[str, float]:
    """The metrics of a task, each in [0, 1].

    mAP over all classes that have a positive; for `single_label` also the shares of images whose class is the
    first guess (`top1`) and among the first five (`top5`); with `unseen` classes also the mAP over these and over
    the others (where none of them has a positive, that one is left out). With unseen classes, mAP is what the
    literature calls generalised.
    """
    found = {"mAP": metrics.mean_average_precision(scored.logits, scored.labels)}
    if task == "single_label":
        found["top1"], found["top5"] = accuracy(scored.logits, scored.labels, top_k=(1, 5))
    if unseen:
        is_unseen = np.isin(np.arange(scored.labels.shape[1]), unseen)
        for name, columns in (("mAP_seen", ~is_unseen), ("mAP_unseen", is_unseen)):
            if scored.labels[:, columns].any():
                found[name] = metrics.mean_average_precision(scored.logits[:, columns], scored.labels[:, columns])
    return found


def merge(parts: Sequence[Scored], expected_ids: np.ndarray) -> Scored:
    """The workers' parts as one, ordered by image id.

    Raises:
        EvaluationError: an image is missing, unknown, or counted twice.
    """
    ids = np.concatenate([part.image_ids for part in parts])
    unique, counts = np.unique(ids, return_counts=True)
    missing, unknown = np.setdiff1d(expected_ids, unique), np.setdiff1d(unique, expected_ids)
    twice = unique[counts > 1]
    if len(missing) or len(unknown) or len(twice):
        raise EvaluationError(
            f"each of the {len(expected_ids)} images must be evaluated exactly once, but {len(missing)} are missing "
            f"{missing[:5].tolist()}, {len(unknown)} unknown {unknown[:5].tolist()}, {len(twice)} counted twice "
            f"{twice[:5].tolist()}."
        )
    by_id = np.argsort(ids, kind="stable")
    return Scored(
        ids[by_id],
        np.concatenate([part.logits for part in parts])[by_id],
        np.concatenate([part.labels for part in parts])[by_id],
    )
