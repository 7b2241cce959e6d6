"""The rows of the brief's tables: what each compares, the experiment that measures it, and what was published.

Table A is the model table of PaddleClas's ML-Decoder page; B1 and B2 list the same backbones on ImageNet-1k and, with
and without the head, on COCO 2017. A and B1 also get a row for the other head. Published numbers are the brief's, as
printed there; nothing here was measured.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Benchmark:
    """What the models of a table are judged on."""

    name: str
    num_classes: int
    val_images: tuple[int, int]
    """Fewest and most images of the official validation split: those with a label, and all of them."""


COCO = Benchmark("COCO 2017, multi-label", 80, (4952, 5000))
IMAGENET = Benchmark("ImageNet-1k", 1000, (50_000, 50_000))


@dataclass(frozen=True)
class Published:
    """What the brief prints in a row; None where its cell is blank."""

    score: float | None = None
    """mAP or top-1, in [0, 1]."""
    flops_g: float | None = None
    params_m: float | None = None


@dataclass(frozen=True)
class Row:
    """One row of one table."""

    table: str
    model: str
    """The brief's label."""
    backbone: str
    use_ml_decoder: bool
    experiment: str
    """Name of the experiment that fills the row."""
    brief: Published = Published()


@dataclass(frozen=True)
class Table:
    """A table of the brief; its rows in the brief's order."""

    name: str
    title: str
    benchmark: Benchmark
    rows: tuple[Row, ...]


def _a(backbone: str, experiment: str, score: float | None = None) -> tuple[Row, Row]:
    """Without the head, to compare, and with it, as the brief has it."""
    return (
        Row("A", backbone, backbone, False, f"{experiment}_gap"),
        Row("A", f"{backbone}_ml_decoder", backbone, True, experiment, Published(score)),
    )


def _b1(model: str, experiment: str, score: float, flops_g: float, params_m: float) -> tuple[Row, Row]:
    """Without the head, as the brief has it, and with it, to compare."""
    return (
        Row("B1", model, model, False, experiment, Published(score, flops_g, params_m)),
        Row("B1", f"{model}_ml_decoder", model, True, f"{experiment}_ml_decoder"),
    )


def _b2(model: str, experiment: str, score: float | None = None) -> tuple[Row, Row]:
    """Without and with the head; the brief has a number for one row only, which has it."""
    return (
        Row("B2", model, model, False, f"{experiment}_gap"),
        Row("B2", model, model, True, experiment, Published(score)),
    )


TABLES = (
    Table(
        "A",
        "ML-Decoder on COCO 2017",
        COCO,
        (
            *_a("ResNet50", "coco_resnet50_224", 0.795),
            *_a("ResNet101", "coco_resnet101_448"),
            *_a("ResNet152", "coco_resnet152_448"),
        ),
    ),
    Table(
        "B1",
        "Backbones on ImageNet-1k (* = weights from timm)",
        IMAGENET,
        (
            *_b1("ResNet50", "imagenet_resnet50", 0.765, 8.190, 25.560),
            *_b1("ResNet50*", "imagenet_resnet50_a1", 0.804, 8.190, 25.560),
            *_b1("ResNet50_vd", "imagenet_resnet50_vd", 0.791, 8.670, 25.580),
            *_b1("ResNet50_vd_ssld", "imagenet_resnet50_vd_ssld", 0.830, 8.670, 25.580),
            *_b1("Fix_ResNet50_vd_ssld", "imagenet_fix_resnet50_vd_ssld", 0.840, 17.696, 25.580),
        ),
    ),
    Table(
        "B2",
        "The same backbones on COCO 2017, without and with ML-Decoder",
        COCO,
        (
            *_b2("ResNet50", "coco_resnet50_224", 0.784),
            *_b2("ResNet50*", "coco_resnet50_a1_224"),
            *_b2("ResNet50_vd", "coco_resnet50_vd_224"),
            *_b2("ResNet50_vd_ssld", "coco_resnet50_vd_ssld_224"),
            *_b2("Fix_ResNet50_vd_ssld", "coco_fix_resnet50_vd_ssld_320"),
        ),
    ),
)
