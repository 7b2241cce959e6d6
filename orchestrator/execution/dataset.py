"""The data of an experiment: looked at first, without writing anything; then turned into shards once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import coco, digits, shards
from datasets.config import DataConfig
from datasets.schema import BadImage, DataError, Manifest, Record


@dataclass(frozen=True)
class Source:
    """What `look` found: enough to check an experiment and to plan it."""

    classes: tuple[str, ...]
    num_train: int
    num_val: int
    records: tuple[Sequence[Record], Sequence[Record]] | None = None
    manifests: tuple[Manifest, Manifest] | None = None

    @property
    def num_images(self) -> int:
        return self.num_train + self.num_val


@dataclass(frozen=True)
class Prepared:
    """Both splits as shards."""

    folders: tuple[Path, Path]
    manifests: tuple[Manifest, Manifest]

    @property
    def bad_images(self) -> list[BadImage]:
        """What was skipped in either split."""
        return [image for manifest in self.manifests for image in manifest.bad_images]

    @property
    def digest(self) -> str:
        """Identity of the examples, wherever they lie."""
        return _digest([manifest.digest for manifest in self.manifests])


def look(config: DataConfig) -> Source:
    """Read annotations or manifests and check them; nothing is written.

    Raises:
        DataError: files are missing or wrong, or the two splits do not have the same classes.
    """
    if config.source == "digits":
        return Source(digits.CLASSES, config.digits.train_images, config.digits.val_images)
    root = _root(config)
    if config.source == "shards":
        train, val = (shards.read_manifest(root / split) for split in (config.train_split, config.val_split))
        for manifest in (train, val):
            _check_bad_share(manifest, config.max_bad_share)
        _same_classes(train.classes, val.classes)
        return Source(train.classes, train.num_images, val.num_images, manifests=(train, val))
    read = [_read_coco(root, split, config) for split in (config.train_split, config.val_split)]
    (train_records, train_classes), (val_records, val_classes) = read
    _same_classes(train_classes, val_classes)
    return Source(tuple(train_classes), len(train_records), len(val_records), records=(train_records, val_records))


def prepare(config: DataConfig, source: Source, cache: Path) -> Prepared:
    """Write both splits as shards under `cache`, or take those that lie there from before."""
    if source.manifests is not None:
        root = _root(config)
        return Prepared((root / config.train_split, root / config.val_split), source.manifests)
    if config.source == "digits":
        scenes = digits.compose(cache / f"digits-{_digest(config.digits.model_dump())}", **config.digits.model_dump())
        splits: tuple[str, str] = ("train", "val")
        root, read = scenes, [_read_coco(scenes, split, config)[0] for split in splits]
    else:
        root, splits = _root(config), (config.train_split, config.val_split)
        assert source.records is not None
        read = [list(records) for records in source.records]
    folders, manifests = [], []
    for split, records in zip(splits, read, strict=True):
        annotations = _annotations(root, split)
        key = {
            "annotations": coco.source_digest(annotations),
            "images": _digest([(r.image_id, Path(r.path).name, _size(r.path)) for r in records]),
            "keep_unlabelled": config.keep_unlabelled,
            "rows_per_group": config.rows_per_group,
        }
        folder = cache / f"{split}-{_digest(key)}"
        if not (folder / "manifest.json").exists():
            shards.write(
                records,
                source.classes,
                folder,
                split=split,
                rows_per_group=config.rows_per_group,
                source=key,
                max_bad_share=config.max_bad_share,
                image_root=root / split,
            )
        folders.append(folder)
        manifests.append(shards.read_manifest(folder))
        _check_bad_share(manifests[-1], config.max_bad_share)
    return Prepared((folders[0], folders[1]), (manifests[0], manifests[1]))


def _check_bad_share(manifest: Manifest, max_bad_share: float) -> None:
    """Shards may have been written under a laxer limit than this experiment's."""
    num_bad = len(manifest.bad_images)
    if num_bad > max_bad_share * (manifest.num_images + num_bad):
        raise DataError(
            f"at most {max_bad_share:.2%} of the images may be unreadable (data.max_bad_share), but {num_bad} of "
            f"{manifest.num_images + num_bad} in {manifest.split} are: {[b.path for b in manifest.bad_images[:5]]}."
        )


def _read_coco(root: Path, split: str, config: DataConfig) -> tuple[list[Record], list[str]]:
    return coco.read(_annotations(root, split), root / split, keep_unlabelled=config.keep_unlabelled)


def _annotations(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}.json"


def _root(config: DataConfig) -> Path:
    if config.root is None:
        raise DataError(
            f"data.root must name the folder of the data set for data.source={config.source}, but it is not set. "
            "Add data.root=FOLDER to the command."
        )
    return Path(config.root).expanduser().resolve()


def _same_classes(train: Sequence[str], val: Sequence[str]) -> None:
    if list(train) != list(val):
        differing = sorted(set(train) ^ set(val))
        raise DataError(
            f"train and val must have the same classes in the same order, but they have {len(train)} and {len(val)}; "
            f"only in one of them: {differing[:5]}."
        )


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return -1


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
