"""trainables.evaluation: every image of a split counts exactly once, in the order of the ids."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from trainables.evaluation import EvaluationError, Scored, merge, score

CLASSES = 3


def part(*image_ids: int) -> Scored:
    """Logits and labels that tell which image they belong to."""
    ids = np.array(image_ids, np.int64)
    logits = np.repeat(ids[:, None], CLASSES, 1).astype(np.float32) + np.arange(CLASSES, dtype=np.float32) / 10
    return Scored(ids, logits, (ids[:, None] >> np.arange(CLASSES) & 1).astype(np.uint8))


def batches(*sizes: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches of images of one pixel, numbered on."""
    start = 0
    for size in sizes:
        ids = np.arange(start, start + size)
        pixels = np.repeat(ids[:, None], 3, 1).reshape(size, 3, 1, 1).astype(np.uint8)
        yield {"image": pixels, "labels": part(*ids).labels, "image_id": ids}
        start += size


def prepare(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).float()


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, CLASSES))


def test_parts_are_merged_in_the_order_of_the_ids() -> None:
    merged = merge([part(7, 2), part(), part(5), part(9, 1)], np.array([1, 2, 5, 7, 9]))
    whole = part(1, 2, 5, 7, 9)
    np.testing.assert_array_equal(merged.image_ids, whole.image_ids)
    np.testing.assert_array_equal(merged.logits, whole.logits)
    np.testing.assert_array_equal(merged.labels, whole.labels)
    assert (merged.image_ids.dtype, merged.logits.dtype, merged.labels.dtype) == (np.int64, np.float32, np.uint8)


def test_how_the_images_are_dealt_to_workers_changes_nothing() -> None:
    expected = np.array([4, 1, 3, 2])
    one = merge([part(4, 1, 3, 2)], expected)
    for parts in ([part(1, 2), part(3, 4)], [part(4), part(3), part(2), part(1)], [part(), part(2, 4, 1, 3)]):
        np.testing.assert_array_equal(merge(parts, expected).logits, one.logits)


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        ([part(1), part(2)], "1 are missing [3], 0 unknown [], 0 counted twice []"),
        ([part(1, 2, 3), part(8, 9)], "0 are missing [], 2 unknown [8, 9], 0 counted twice []"),
        ([part(1, 2), part(2, 3)], "0 are missing [], 0 unknown [], 1 counted twice [2]"),
        ([part(1, 1), part(9)], "2 are missing [2, 3], 1 unknown [9], 1 counted twice [1]"),
        ([part(), part()], "3 are missing [1, 2, 3], 0 unknown [], 0 counted twice []"),
    ],
)
def test_images_that_are_missing_unknown_or_counted_twice_are_an_error(parts: list[Scored], found: str) -> None:
    with pytest.raises(EvaluationError) as error:
        merge(parts, np.array([1, 2, 3]))
    assert found in str(error.value)
    assert "each of the 3 images must be evaluated exactly once" in str(error.value)


def test_scoring_uses_running_statistics_and_no_dropout_and_leaves_the_mode_as_it_was() -> None:
    judged = model()
    before = {name: tensor.clone() for name, tensor in judged.state_dict().items()}
    scored = score(judged, batches(4, 4, 1), prepare, CLASSES)
    assert judged.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in judged.state_dict().items())
    np.testing.assert_array_equal(scored.image_ids, np.arange(9))
    judged.eval()
    whole = score(judged, batches(9), prepare, CLASSES)
    assert not judged.training
    np.testing.assert_allclose(scored.logits, whole.logits, rtol=1e-6)
    np.testing.assert_array_equal(scored.labels, whole.labels)


def test_logits_are_float32_when_the_model_computes_in_bfloat16() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        scored = score(model(), batches(5), prepare, CLASSES)
    assert scored.logits.dtype == np.float32


def test_a_worker_without_images_takes_part_with_nothing() -> None:
    empty = score(model(), batches(), prepare, CLASSES)
    assert (empty.image_ids.shape, empty.logits.shape, empty.labels.shape) == ((0,), (0, CLASSES), (0, CLASSES))
    merged = merge([empty, score(model(), batches(4), prepare, CLASSES)], np.arange(4))
    assert (merged.image_ids.dtype, merged.logits.dtype, merged.labels.dtype) == (np.int64, np.float32, np.uint8)
