"""The part of an experiment that `datasets` owns: which images, how large, and how they reach the workers."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """A frozen node of the configuration tree; unknown keys are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class DigitsConfig(Settings):
    """Scenes of handwritten digits composed by `datasets.digits`."""

    train_images: int = Field(2000, ge=1)
    val_images: int = Field(500, ge=1)
    side: int = Field(48, ge=16)
    """Height and width of a scene in pixels."""
    seed: int = Field(0, ge=0)


class DataConfig(Settings):
    """Where the examples come from and how they are fed."""

    source: Literal["digits", "coco", "shards"] = "coco"
    """`digits` composes its own COCO-format scenes; `coco` reads annotations and images under `root`;
    `shards` reads `root/<split>` as written by this project."""
    root: str | None = None
    """Folder of the data set; not needed for `digits`."""
    train_split: str = "train2017"
    val_split: str = "val2017"
    """For `coco`: `root/<split>/` holds the images and `root/annotations/instances_<split>.json` the labels."""
    keep_unlabelled: bool = True
    """Keep images that carry no annotation: they are negatives of every class."""
    image_size: int = Field(224, ge=8)
    """Height and width after a plain resize that ignores the aspect, as in the ML-Decoder recipe."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Of RGB in [0, 1]; applied on the device."""
    rows_per_group: int = Field(128, ge=64, le=256)
    """Examples in one Parquet row group, the unit of reading."""
    feeding: Literal["auto", "resident", "streaming"] = "auto"
    resident_share: float = Field(0.4, gt=0.0, le=0.9)
    """`auto` keeps the decoded set resident when it fits this share of one node's object store."""
    max_bad_share: float = Field(0.01, ge=0.0, lt=1.0)
    """A split with a larger share of unreadable images is refused."""
    digits: DigitsConfig = DigitsConfig()
