"""Progressive image size: both ends exact, straight in between, in steps that backbones take."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainables.config import TrainConfig
from trainables.progressive import epoch_size

ROOT = Path(__file__).parent.parent


def sizes(epochs: int, start: int | None, end: int | None, data: int = 224) -> list[int]:
    train = TrainConfig(epochs=epochs, image_size_start=start, image_size=end)
    return [epoch_size(train, data, epoch) for epoch in range(epochs)]


@pytest.mark.parametrize(
    ("epochs", "start", "end", "expected"),
    [
        (3, None, None, [224, 224, 224]),
        (3, None, 160, [160, 160, 160]),
        (5, 96, None, [96, 128, 160, 192, 224]),
        (4, 128, 192, [128, 160, 160, 192]),
        (3, 100, 150, [100, 128, 150]),
        (3, 224, 96, [224, 160, 96]),
        (4, 70, 90, [70, 70, 90, 90]),
        (2, 96, None, [96, 224]),
        (1, 96, None, [224]),
    ],
)
def test_sizes_of_an_experiment(epochs: int, start: int | None, end: int | None, expected: list[int]) -> None:
    assert sizes(epochs, start, end) == expected


@given(epochs=st.integers(2, 60), start=st.integers(8, 640), end=st.integers(8, 640))
def test_it_never_turns_back_and_keeps_its_ends(epochs: int, start: int, end: int) -> None:
    found = sizes(epochs, start, end)
    assert (found[0], found[-1]) == (start, end)
    assert found == sorted(found, reverse=start > end)
    assert all(size % 32 == 0 or size in (start, end) for size in found)
    straight = [start + (end - start) * epoch / (epochs - 1) for epoch in range(epochs)]
    assert all(abs(size - place) <= 16 for size, place in zip(found, straight, strict=True))


def test_it_imports_no_torch() -> None:
    code = "import sys, trainables.progressive; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
