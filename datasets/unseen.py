"""Classes that are held out for zero-shot: which they are, and the training images without them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from datasets import files
from datasets.schema import DataError, Record, listed


def indices(unseen_list: str, root: str | Path | None, classes: Sequence[str]) -> tuple[int, ...]:
    """The classes that a setting names, in increasing order.

    Args:
        unseen_list: class names with commas between, or a text file with one a line; a file is meant where some
            name is no class and the file exists.
        root: the folder that the file is relative to; None is the working directory.
        classes: all names, in label order; several classes of one name are held out together.

    Raises:
        DataError: a name is no class (all are listed, each with the nearest), none is given, or none is left.
    """
    names, where = [name.strip() for name in unseen_list.split(",")], "data.unseen_list"
    path = Path(root or ".") / os.path.expanduser(unseen_list)
    if not set(names) <= set(classes) and os.path.isfile(path):
        names, where = [line.strip() for line in files.text_lines(path)], str(path)
    wanted = {name for name in names if name}
    if unknown := sorted(wanted - set(classes)):
        raise DataError(
            f"{where} must name classes of the data, or a file under data.root with a name a line, but these are "
            f"neither:{listed([_with_nearest(name, classes) for name in unknown])}\nCorrect the names."
        )
    unseen = tuple(label for label, name in enumerate(classes) if name in wanted)
    if not 0 < len(unseen) < len(classes):
        raise DataError(
            f"some classes must be held out and some be left to learn, but {where} names {len(unseen)} of "
            f"{len(classes)}. Name fewer, or leave data.unseen_list out."
        )
    return unseen


def hold_out(
    records: Sequence[Record], unseen: Sequence[int], *, drop: bool, keep_unlabelled: bool = True
) -> list[Record]:
    """Training records on which no unseen class is labelled.

    Args:
        records: of the training split.
        unseen: labels of the held-out classes.
        drop: leave out the images that show one; otherwise they stay, without that label.
        keep_unlabelled: keep images that lose their last label so.

    Raises:
        DataError: no record is left.
    """
    hidden = frozenset(unseen)
    kept: list[Record] = []
    for record in records:
        if hidden.isdisjoint(record.labels):
            kept.append(record)
        elif not drop:
            labels = tuple(label for label in record.labels if label not in hidden)
            if labels or keep_unlabelled:
                kept.append(replace(record, labels=labels))
    if not kept:
        raise DataError(
            f"some training images must show no unseen class, but all {len(records)} show one of the {len(hidden)}. "
            "Hold out fewer classes, or set data.drop_unseen=false and keep the images without those labels."
        )
    return kept


def _with_nearest(name: str, classes: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, classes, n=1)
    return f"{name!r}; the nearest is {nearest[0]!r}" if nearest else repr(name)
