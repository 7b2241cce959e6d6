"""The part of an experiment that `datasets` owns: which images, how large, and how they reach the workers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[float, Field(gt=0.0)]


class Settings(BaseModel):
    """A frozen node of the configuration tree; unknown keys are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class DigitsConfig(Settings):
    """Scenes of handwritten digits composed by `datasets.digits`."""

    train_images: int = Field(2000, ge=1)
    val_images: int = Field(500, ge=1)
    side: int = Field(48, ge=16)
    """Height and width of a scene in pixels."""
    seed: int = Field(0, ge=0)


class DataConfig(Settings):
    """Where the examples come from and how they are fed."""

    source: Literal["digits", "coco", "imagenet", "lists", "shards"] = "coco"
    """`digits` composes its own COCO-format scenes; `coco` reads annotations and images under `root`; `imagenet`
    reads `root/<split>/<class folder>/`; `lists` reads PaddleClas's list files; `shards` reads `root/<split>` as
    written by this project."""
    root: str | None = None
    """Folder of the data set; not needed for `digits`."""
    train_split: str = "train2017"
    val_split: str = "val2017"
    """For `coco`: `root/<split>/` holds the images and `root/annotations/instances_<split>.json` the labels; for
    `imagenet` the class folders; for `lists` the images, where they do not lie in `root` itself."""
    train_list: str = "multilabel_train_list.txt"
    val_list: str = "multilabel_val_list.txt"
    label_list: str = "COCO2017_labels.txt"
    """For `lists`: text files under `root`; a line is `file<TAB>0,1,...` (a column a class) or `file index`, and the
    label file has one class name a line, with or without its index in front."""
    unseen_list: str | None = None
    """Zero-shot: a text file under `root` with a class name a line, or the names themselves, divided by commas; no
    training image is labelled with them, and the word decoder is judged on them."""
    drop_unseen: bool = True
    """Leave out training images that show an unseen class; false where they are merely not labelled with it."""
    word_vectors: str | None = None
    """The word decoder's words: a text file of GloVe, word2vec or fastText, under `root` unless the path is absolute.
    `digits` names our own for that data set."""
    keep_unlabelled: bool = True
    """Keep images that carry no annotation: they are negatives of every class."""
    image_size: int = Field(224, ge=8)
    """Height and width of what is fed and judged, in pixels."""
    resize: Literal["squash", "center_crop"] = "squash"
    """`squash` ignores the aspect, as in the ML-Decoder recipe; `center_crop` keeps it, as on ImageNet."""
    crop_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.875
    """center_crop: the crop's side as a share of the resized image's short side."""
    train_side: int | None = Field(None, ge=8)
    """Training images are squashed to this side instead, whole, for random crops to be taken from."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    """Of RGB in [0, 1]; applied on the device."""
    rows_per_group: int = Field(128, ge=64, le=256)
    """Examples in one Parquet row group, the unit of reading."""
    feeding: Literal["auto", "resident", "streaming"] = "auto"
    resident_share: float = Field(0.4, gt=0.0, le=0.9)
    """`auto` keeps the decoded set resident when it fits this share of one node's object store."""
    max_bad_share: float = Field(0.01, ge=0.0, lt=1.0)
    """A split with a larger share of unreadable images is refused."""
    digits: DigitsConfig = DigitsConfig()
