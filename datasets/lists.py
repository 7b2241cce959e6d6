"""Reading list files: a line an image, with its file name and its labels, as PaddleClas writes them.

A list file is not trusted: a file name must stay inside the image folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from datasets import files
from datasets.schema import DataError, Record, listed

Labels = tuple[int, ...]

_TRIED = 20  # names of a list that are looked for in an image folder


def read(
    list_file: str | Path,
    label_file: str | Path | None,
    image_root: str | Path,
    *,
    keep_unlabelled: bool = True,
) -> tuple[list[Record], list[str]]:
    """Which image shows which classes.

    A line is `name<TAB>0,1,0`, a column a class, or `name<TAB>7` or `name 7`, the index of its only class; all
    lines of a file are of one kind. As in COCO, a missing image file is no mistake here: it is found, and
    counted, when shards are written.

    Args:
        list_file: in UTF-8; blank lines are passed over.
        label_file: see `read_labels`; None names the classes by their index.
        image_root: the folder that names are relative to.
        keep_unlabelled: keep images of no class, which are negatives of every class.

    Returns:
        Records in the order of the file, with the number of their line (from 1) as image id and absolute paths;
        and class names, in the order that labels index.

    Raises:
        DataError: a file or folder is missing, a line is of neither form, of another kind or length than it
            must be, repeats an image or names one outside the image folder, or no image is left.
    """
    list_file, root = Path(list_file), Path(os.path.realpath(image_root))
    if not root.is_dir():
        raise DataError(f"Images must lie in a folder, but {image_root} is none. Correct its path.")
    names = None if label_file is None else read_labels(label_file)
    name_problem = files.name_checker(root)
    records: list[Record] = []
    problems: list[str] = []
    line_of: dict[str, int] = {}
    parse: Callable[[str, int | None], Labels] | None = None
    num_classes: int | None = None
    for number, line in _numbered_lines(list_file):
        if parse is None:
            parse, num_classes = _form(line, names)
        try:
            name, field = _halves(line)
            labels = parse(field, num_classes)
            if problem := name_problem(name):
                raise ValueError(f"name {name!r} {problem}")
            if (first := line_of.setdefault(os.path.normpath(name), number)) != number:
                raise ValueError(f"name {name!r} is on line {first} already")
        except ValueError as error:
            problems.append(f"line {number}: {error}")
            continue
        if labels or keep_unlabelled:
            records.append(Record(number, f"{root}{os.sep}{name}", labels))
    if problems:
        raise DataError(
            f"{list_file} must hold lines `name<TAB>0,1,...` or `name index`, but:{listed(problems)}\n"
            f"Correct the file{'' if label_file is None else f', or {label_file}'}."
        )
    if not records:
        raise DataError(
            f"{list_file} must leave at least one image, but it leaves none with keep_unlabelled={keep_unlabelled}. "
            "Name another file or keep those images."
        )
    if names is None:
        names = [str(label) for label in range(num_classes or 1 + max(record.labels[-1] for record in records))]
    return records, names


def image_root(list_file: str | Path, candidates: Sequence[str | Path]) -> Path:
    """The folder that the names of a list are relative to: the first that holds one of its first images.

    PaddleClas's converter writes names relative to the folder of the split, its other lists are relative to the
    data set's. Raises DataError where no candidate holds any of them.
    """
    names = [_halves(line)[0] for _, line in islice(_numbered_lines(Path(list_file)), _TRIED)]
    for folder in map(Path, candidates):
        name_problem = files.name_checker(os.path.realpath(folder))
        if any(not name_problem(name) and os.path.isfile(folder / name) for name in names):
            return folder
    raise DataError(
        f"the images of {list_file} must lie in {' or '.join(map(str, candidates))}, but none of the first "
        f"{len(names)} does:{listed(names, 3)}\nCorrect data.root, data.train_split and data.val_split, or the list."
    )


def read_labels(label_file: str | Path) -> list[str]:
    """Class names, one a line, in label order.

    A leading index is cut off when every line starts with its own ("0 person", "7 truck", "9 traffic light"), and
    part of the name otherwise. Raises DataError for a file that cannot be read, is empty or has a blank line.
    """
    lines = [line.strip() for line in files.text_lines(Path(label_file))]
    while lines and not lines[-1]:
        lines.pop()
    if not lines or "" in lines:
        found = f"line {lines.index('') + 1} is blank" if lines else "it is empty"
        raise DataError(f"{label_file} must hold a class name a line, but {found}. Correct the file.")
    halves = [line.partition(" ") for line in lines]
    if all(index == str(number) and name for number, (index, _, name) in enumerate(halves)):
        return [name.strip() for _, _, name in halves]
    return lines


def _numbered_lines(list_file: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1; DataError where there is none."""
    is_empty = True
    for number, line in enumerate(files.text_lines(list_file), 1):
        if line := line.strip():
            is_empty = False
            yield number, line
    if is_empty:
        raise DataError(f"{list_file} must hold a line an image, but it is empty. Name another file.")


def _halves(line: str) -> tuple[str, str]:
    """The name, which may hold spaces, and the field of the labels."""
    name, _, field = line.rpartition("\t" if "\t" in line else " ")
    return name.strip(), field.strip()


def _form(line: str, names: Sequence[str] | None) -> tuple[Callable[[str, int | None], Labels], int | None]:
    """How the labels of a list are read, judged by its first line, and the number of classes where it is known."""
    num_commas = _halves(line)[1].count(",")
    if not num_commas:
        return _index, None if names is None else len(names)
    return _columns, num_commas + 1 if names is None else len(names)


def _columns(field: str, num_classes: int | None) -> Labels:
    """`0,1,0` -> (1,). By slices and a search for ones, because a line may have a thousand columns."""
    values, commas = field[::2], field[1::2]
    if values.strip("01") or commas.strip(",") or len(values) == len(commas):
        raise ValueError(f"labels must be 0 or 1 with commas between, but are {field[:60]!r}")
    if len(values) != num_classes:
        raise ValueError(f"there must be a column for each of {num_classes} classes, but there are {len(values)}")
    return tuple(match.start() for match in re.finditer("1", values))


def _index(field: str, num_classes: int | None) -> Labels:
    """`7` -> (7,)."""
    if not re.fullmatch("[0-9]{1,5}", field):
        raise ValueError(f"the label must be the index of a class, but is {field[:60]!r}")
    if num_classes is not None and int(field) >= num_classes:
        raise ValueError(f"the label must be 0 .. {num_classes - 1}, but is {field}")
    return (int(field),)
