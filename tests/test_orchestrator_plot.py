"""The plot: what is drawn, what is joined, and what is said about the claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.config import overrides
from orchestrator.reporting import plot, results
from orchestrator.reporting.plot import Point, Setting
from tests.reporting_helpers import fake_provenance, record, write_run

SETTING = Setting("coco val2017, 4952 images, d1d2d3d4", 224, 40)


@pytest.fixture(autouse=True)
def _provenance(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_provenance(monkeypatch)


def point(backbone: str, head: str, score: float, images_per_s: float, **changes: Any) -> Point:
    fields = {"setting": SETTING, "source": "run"} | changes
    return Point(backbone=backbone, head=head, score=score, images_per_s=images_per_s, **fields)


SMALL = (point("resnet50", "gap", 0.75, 1000), point("resnet50", "ml_decoder", 0.80, 900))
LARGE = point("resnet101", "gap", 0.78, 600)


def test_the_best_of_each_run_backbone_and_head_is_a_point(tmp_path: Path) -> None:
    experiment = overrides.load("digits")
    gap = {"model.head": "gap"}
    records = [
        record(0.9, number=0, overrides=gap, epochs=8),
        record(0.8, number=1, overrides=gap, epochs=8),
        record(0.7, number=2, epochs=8),
        record(0.95, number=3, overrides={"model.backbone": "resnet10t"}, epochs=8),
    ]
    write_run(tmp_path, experiment, records, num_evaluated=500)
    write_run(tmp_path, experiment, [record(0.6, epochs=8)], suffix="b", num_evaluated=500, images_per_s=())
    write_run(tmp_path, overrides.load("imagenet_resnet50"), [record(0.7, epochs=120)], num_evaluated=50_000)
    found = plot.points(results.read(tmp_path))
    assert [(p.backbone, p.head, p.score, p.images_per_s) for p in found] == [
        ("resnet10t", "ml_decoder", 0.95, 100.0),
        ("test_resnet", "gap", 0.9, 100.0),
        ("test_resnet", "ml_decoder", 0.7, 100.0),
    ]
    assert {p.setting for p in found} == {Setting("digits, 500 images, d1d2d3d4", 48, 8)}


def test_a_line_joins_the_heads_of_one_backbone_in_one_setting() -> None:
    other = Setting(SETTING.data, 448, 40)
    drawn = plot.figure(
        sorted([*SMALL, LARGE, point("resnet50", "gap", 0.7, 300, setting=other)], key=lambda p: p.name)
    )
    lines = [trace for trace in drawn.data if trace.mode == "lines"]
    assert [(trace.x, trace.y) for trace in lines] == [((1000, 900), (75, 80))]
    markers = [trace for trace in drawn.data if trace.mode == "markers"]
    assert [trace.name for trace in markers] == [
        "resnet101, 224 px, 40 epochs",
        "resnet50, 224 px, 40 epochs",
        "resnet50, 448 px, 40 epochs",
    ]
    assert markers[1].marker.symbol == ("circle-open", "star")
    assert lines[0].line.color == markers[1].marker.color != markers[0].marker.color


def test_each_data_set_has_a_panel() -> None:
    other = Setting("digits, 500 images, ff", 48, 8)
    drawn = plot.figure([*SMALL, point("resnet10t", "gap", 0.9, 5000, setting=other)])
    assert [title.text for title in drawn.layout.annotations] == [SETTING.data, other.data]
    assert {trace.yaxis for trace in drawn.data} == {"y", "y2"}


def test_the_claim_is_answered_by_slower_backbones_in_the_same_setting_only() -> None:
    longer = Setting(SETTING.data, 224, 80)
    others = [
        point("resnet18", "gap", 0.6, 2000),  # smaller
        point("resnet152", "gap", 0.9, 400, setting=longer),
        point("resnet101", "ml_decoder", 0.84, 560),  # has no larger one beside it
    ]
    [said] = plot.claims([*SMALL, LARGE, *others])
    assert said == (
        "resnet50 with ML-Decoder against resnet101 with pooling (224 px, 40 epochs, "
        "coco val2017, 4952 images, d1d2d3d4): +2.0 points of mAP at 1.50 x its images/s."
    )


def test_without_the_backbones_own_pooling_model_nothing_is_claimed() -> None:
    assert plot.claims([SMALL[1], LARGE]) == []


def test_a_page_without_results_says_so(tmp_path: Path) -> None:
    plot.write(results.read(tmp_path / "<none>"), tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text()
    assert "Nothing was measured yet" in text and "Not yet measured" in text and "&lt;none&gt;" in text


def test_a_page_needs_no_network(tmp_path: Path) -> None:
    write_run(tmp_path, overrides.load("digits"), [record(0.9, epochs=8)], num_evaluated=500)
    text = plot.page(results.read(tmp_path))
    assert "test_resnet, 48 px, 8 epochs" in text and "Nothing was measured" not in text
    assert "<script src=" not in text and "Plotly.newPlot" in text
