"""The data of an experiment: looked at first, without writing anything; then turned into shards once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets import digits, shards, unseen, words
from datasets.config import DataConfig
from datasets.schema import BadImage, DataError, Manifest, Record
from datasets.words import Words
from orchestrator.execution import examples
from orchestrator.execution.examples import SplitFiles, digest

SHUFFLE_SEED = 0
"""Of the order in which the images of folders and lists are written; the order of an epoch has a seed of its own."""


@dataclass(frozen=True)
class Source:
    """What `look` found: enough to check an experiment and to plan it."""

    classes: tuple[str, ...]
    num_train: int
    """Of `digits` before the scenes with unseen classes are dropped: they are composed later."""
    num_val: int
    records: tuple[Sequence[Record], Sequence[Record]] | None = None
    manifests: tuple[Manifest, Manifest] | None = None
    unseen: tuple[int, ...] = ()
    """Labels of the held-out classes: on no training image, and kept on those of validation."""
    words: Words | None = None
    """One vector for each class, unseen ones included; None where data.word_vectors is not set."""

    @property
    def num_images(self) -> int:
        return self.num_train + self.num_val


@dataclass(frozen=True)
class Prepared:
    """Both splits as shards."""

    folders: tuple[Path, Path]
    manifests: tuple[Manifest, Manifest]
    unseen: tuple[int, ...] = ()
    words: Words | None = None

    @property
    def bad_images(self) -> list[BadImage]:
        """What was skipped in either split."""
        return [image for manifest in self.manifests for image in manifest.bad_images]

    @property
    def digest(self) -> str:
        """Identity of the examples, wherever they lie, and of what else the data says about the classes."""
        parts: list[object] = [manifest.digest for manifest in self.manifests]
        if self.unseen:
            parts.append({"unseen": self.unseen})
        if self.words is not None:
            parts.append({"words": words.digest(self.words)})
        return digest(parts)


def look(config: DataConfig) -> Source:
    """Read annotations or manifests, held-out classes and word vectors, and check them; nothing is written.

    Raises:
        DataError: files are missing or wrong, the two splits do not have the same classes, a held-out class is
            none of them, or a class has no word vector.
    """
    found = _examples(config)
    if config.unseen_list is not None:
        labels = unseen.indices(config.unseen_list, examples.root(config), found.classes)
        found = _held_out(found, labels, config)
    if config.word_vectors is not None:
        found = replace(found, words=words.read(_words_file(config), found.classes))
    return found


def prepare(config: DataConfig, source: Source, cache: Path) -> Prepared:
    """Write both splits as shards under `cache`, or take those that lie there from before."""
    if source.manifests is not None:
        root = examples.needed_root(config)
        folders = root / config.train_split, root / config.val_split
        return Prepared(folders, source.manifests, source.unseen, source.words)
    if config.source == "digits":
        scenes = digits.compose(cache / f"digits-{digest(config.digits.model_dump())}", **config.digits.model_dump())
        as_coco = {"source": "coco", "root": str(scenes), "train_split": "train", "val_split": "val"}
        config = config.model_copy(update=as_coco)
        source = replace(_held_out(_examples(config), source.unseen, config), words=source.words)
    assert source.records is not None
    train, val = examples.locate(config)
    held_out = {"unseen": list(source.unseen), "drop_unseen": config.drop_unseen}
    written = (
        _shards(config, train, source.records[0], source.classes, held_out if source.unseen else {}, cache),
        _shards(config, val, source.records[1], source.classes, {}, cache),
    )
    return Prepared((written[0][0], written[1][0]), (written[0][1], written[1][1]), source.unseen, source.words)


def _shards(
    config: DataConfig,
    files: SplitFiles,
    records: Sequence[Record],
    classes: Sequence[str],
    held_out: dict[str, Any],
    cache: Path,
) -> tuple[Path, Manifest]:
    """The shards of one split, in a folder named by what decides their content."""
    identity = files.identity(records, classes, keep_unlabelled=config.keep_unlabelled)
    key = {**identity, "rows_per_group": config.rows_per_group, **held_out}
    if config.source != "coco":
        # Folders and lists come sorted by class, and an epoch moves rows only so far from their place in the shards.
        key["shuffled"] = SHUFFLE_SEED
        records = [records[row] for row in np.random.default_rng(SHUFFLE_SEED).permutation(len(records))]
    folder = cache / f"{files.name}-{digest(key)}"
    if not (folder / "manifest.json").exists():
        shards.write(
            records,
            classes,
            folder,
            split=files.name,
            rows_per_group=config.rows_per_group,
            source=key,
            max_bad_share=config.max_bad_share,
            image_root=files.image_root,
        )
    manifest = shards.read_manifest(folder)
    _check_bad_share(manifest, config.max_bad_share)
    return folder, manifest


def _examples(config: DataConfig) -> Source:
    """The classes, and the records or manifests of both splits; `digits` are not composed yet."""
    if config.source == "digits":
        return Source(digits.CLASSES, config.digits.train_images, config.digits.val_images)
    if config.source == "shards":
        root = examples.needed_root(config)
        train, val = (shards.read_manifest(root / split) for split in (config.train_split, config.val_split))
        for manifest in (train, val):
            _check_bad_share(manifest, config.max_bad_share)
        _same_classes(train.classes, val.classes)
        return Source(train.classes, train.num_images, val.num_images, manifests=(train, val))
    read = [files.read(keep_unlabelled=config.keep_unlabelled) for files in examples.locate(config)]
    (train_records, train_classes), (val_records, val_classes) = read
    _same_classes(train_classes, val_classes)
    return Source(tuple(train_classes), len(train_records), len(val_records), records=(train_records, val_records))


def _held_out(source: Source, labels: tuple[int, ...], config: DataConfig) -> Source:
    """`source` with classes held out of its training images, where they are known already."""
    if not labels:
        return source
    if source.manifests is not None:
        shown = [source.classes[label] for label in labels if source.manifests[0].positives[label]]
        if shown:
            raise DataError(
                f"training shards must be written without the classes of data.unseen_list, but those of "
                f"{config.train_split} show {', '.join(shown)}. Prepare them again from the original data with the "
                "same data.unseen_list, or use that data itself."
            )
    if source.records is not None:
        train, val = source.records
        train = unseen.hold_out(train, labels, drop=config.drop_unseen, keep_unlabelled=config.keep_unlabelled)
        source = replace(source, records=(train, val), num_train=len(train))
    return replace(source, unseen=labels)


def _words_file(config: DataConfig) -> Path:
    """The built-in words of the digits, or a file; where its path is relative, it is so to data.root."""
    if config.word_vectors == "digits":
        return words.DIGIT_WORDS
    return (examples.root(config) or Path()) / os.path.expanduser(str(config.word_vectors))


def _check_bad_share(manifest: Manifest, max_bad_share: float) -> None:
    """Shards may have been written under a laxer limit than this experiment's."""
    num_bad = len(manifest.bad_images)
    if num_bad > max_bad_share * (manifest.num_images + num_bad):
        raise DataError(
            f"at most {max_bad_share:.2%} of the images may be unreadable (data.max_bad_share), but {num_bad} of "
            f"{manifest.num_images + num_bad} in {manifest.split} are: {[b.path for b in manifest.bad_images[:5]]}."
        )


def _same_classes(train: Sequence[str], val: Sequence[str]) -> None:
    if list(train) != list(val):
        differing = sorted(set(train) ^ set(val))
        raise DataError(
            f"train and val must have the same classes in the same order, but they have {len(train)} and {len(val)}; "
            f"only in one of them: {differing[:5]}."
        )
