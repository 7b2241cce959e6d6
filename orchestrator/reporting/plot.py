"""Measured mAP against measured training images per second: does the head beat a larger backbone?

One web page that needs no network. A panel a data set, since mAP of different images does not compare; a line joins
the two heads on one backbone, and a sentence compares each head with the pooling of slower backbones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby, product
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.execution.runfolder import write_text
from orchestrator.reporting.results import Results, TrialResult

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

PANEL_HEIGHT = 520
SYMBOLS = {"gap": "circle-open", "ml_decoder": "star", "word_decoder": "diamond"}
HEADS = {"gap": "pooling", "ml_decoder": "ML-Decoder", "word_decoder": "ML-Decoder with words"}
CAVEAT = """Every complete trial's best is shown that was judged by mAP: the best of each backbone, head and size in
each run folder. Images per second are those of training, as each run recorded them (median over its epochs): they
compare only between runs on the same machine."""


@dataclass(frozen=True)
class Setting:
    """What must agree for two points to be compared: the images, their size, and the length of training."""

    data: str
    image_size: int
    epochs: int


@dataclass(frozen=True)
class Point:
    """One measured model."""

    setting: Setting
    backbone: str
    head: str
    score: float
    """mAP in [0, 1]."""
    images_per_s: float
    source: str
    """Run folder, trial and date."""

    @property
    def name(self) -> str:
        return f"{self.backbone}, {self.setting.image_size} px, {self.setting.epochs} epochs"


def points(results: Results) -> list[Point]:
    """The best trial of each backbone, head and setting in each run folder, sorted by setting and backbone."""
    best: dict[tuple[object, ...], Point] = {}
    for trial in results.trials:
        if trial.experiment.model.objective != "mAP" or not trial.images_per_s:
            continue
        point = _point(trial, trial.images_per_s)
        key = (trial.folder, point.setting, point.backbone, point.head)
        if key not in best or best[key].score < point.score:
            best[key] = point
    return sorted(best.values(), key=lambda p: (p.setting.data, p.name, p.head, p.images_per_s))


def claims(measured: Sequence[Point]) -> list[str]:
    """A sentence for each ML-Decoder and each larger backbone with pooling, in the same setting.

    Larger: its pooling model trains slower than that of the decoder's own backbone.
    """
    best: dict[tuple[Setting, str, str], Point] = {}
    for point in sorted(measured, key=lambda p: p.score):
        best[point.setting, point.backbone, point.head] = point
    sentences = []
    for decoder, pooling in product(best.values(), best.values()):
        own = best.get((decoder.setting, decoder.backbone, "gap"))
        if (decoder.head, pooling.head) != ("ml_decoder", "gap") or decoder.setting != pooling.setting or own is None:
            continue
        if pooling.images_per_s < own.images_per_s:
            sentences.append(
                f"{decoder.backbone} with ML-Decoder against {pooling.backbone} with pooling "
                f"({decoder.setting.image_size} px, {decoder.setting.epochs} epochs, {decoder.setting.data}): "
                f"{100 * (decoder.score - pooling.score):+.1f} points of mAP at "
                f"{decoder.images_per_s / pooling.images_per_s:.2f} x its images/s."
            )
    return sorted(sentences)


def figure(measured: Sequence[Point]) -> Figure:
    """A panel for each data set of at least one point, in the order that `points` gives them."""
    from plotly.subplots import make_subplots

    panels = {data: list(group) for data, group in groupby(measured, key=lambda p: p.setting.data)}
    drawn = make_subplots(rows=len(panels), cols=1, subplot_titles=list(panels))
    for row, group in enumerate(panels.values(), start=1):
        for trace in _traces(group):
            drawn.add_trace(trace, row=row, col=1)
    drawn.update_xaxes(title_text="training images per second", rangemode="tozero")
    drawn.update_yaxes(title_text="mAP (%)")
    return drawn.update_layout(height=PANEL_HEIGHT * len(panels), template="plotly_white")


def page(results: Results) -> str:
    """The whole web page; it says so when nothing was measured yet."""
    measured = points(results)
    answers = claims(measured) or [
        "Not yet measured. It takes one backbone with both heads and a slower one with pooling, trained in one setting."
    ]
    drawing = "<p>Nothing was measured yet: no complete trial with mAP in the run folders.</p>"
    if measured:
        drawing = f"<p>{CAVEAT}</p>\n" + figure(measured).to_html(full_html=False, include_plotlyjs=True)
    listed = "".join(f"<li>{escape(answer)}</li>\n" for answer in answers)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>mAP against images per second</title>'
        "<style>body {font-family: sans-serif; max-width: 72em; margin: 2em auto}</style></head>\n<body>\n"
        f"<h1>mAP against images per second</h1>\n<p>Run folders: <code>{escape(str(results.root))}</code></p>\n"
        f"<h2>Does the head beat a larger backbone?</h2>\n<ul>\n{listed}</ul>\n{drawing}\n</body></html>\n"
    )


def write(results: Results, path: Path) -> None:
    """Write the page to `path` in one step."""
    write_text(path, page(results))


def _point(trial: TrialResult, images_per_s: float) -> Point:
    model, data = trial.experiment.model, trial.experiment.data
    name = data.source if data.source == "digits" else f"{data.source} {data.val_split}"
    images = f"{name}, {trial.num_evaluated} images, {trial.data_digest[:8]}"
    return Point(
        setting=Setting(images, data.image_size, trial.experiment.train.epochs),
        backbone=model.backbone,
        head=model.head,
        score=trial.score,
        images_per_s=images_per_s,
        source=f"{trial.folder.name}, trial {trial.number}, {trial.date}",
    )


def _traces(group: Sequence[Point]) -> Iterable[object]:
    """A trace for each backbone in each setting: its points, and the line between the best of its heads."""
    from plotly.colors import qualitative
    from plotly.graph_objects import Scatter

    named = groupby(group, key=lambda p: p.name)
    for colour, (name, members) in enumerate(named):
        one = list(members)
        style = {"color": qualitative.D3[colour % len(qualitative.D3)]}
        yield Scatter(
            x=[p.images_per_s for p in one],
            y=[100 * p.score for p in one],
            mode="markers",
            name=name,
            legendgroup=name,
            marker={**style, "size": 13, "symbol": [SYMBOLS[p.head] for p in one]},
            text=[f"{escape(p.name)}<br>{HEADS[p.head]}<br>{escape(p.source)}" for p in one],
            hovertemplate="%{text}<br>%{x:.0f} images/s, %{y:.1f} % mAP<extra></extra>",
        )
        ends = [max(ends, key=lambda p: p.score) for _, ends in groupby(one, key=lambda p: p.head)]
        if len(ends) > 1:
            yield Scatter(
                x=[p.images_per_s for p in ends],
                y=[100 * p.score for p in ends],
                mode="lines",
                line=style,
                name=f"{name}: between its heads",
                legendgroup=name,
                showlegend=False,
                hoverinfo="skip",
            )
