"""Reading COCO annotations as multi-label records; mistakes of the file are found before an image is read.

An annotation file is not trusted: a `file_name` must stay inside the image folder.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from pycocotools.coco import COCO

from datasets import files
from datasets.schema import DataError, Record, listed

_KEYS: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str},
    "annotations": {"id": int, "image_id": int, "category_id": int},
    "categories": {"id": int, "name": str},
}


def read(
    annotations: str | Path, images: str | Path, *, keep_unlabelled: bool = True
) -> tuple[list[Record], list[str]]:
    """Which image shows which categories.

    A category is positive where the image has at least one annotation of it, crowds included. A missing image
    file is no mistake here: it is found, and counted, when shards are written.

    Args:
        annotations: an `instances_*.json`.
        images: the folder that `file_name` is relative to.
        keep_unlabelled: keep images without an annotation, which are negatives of every class.

    Returns:
        Records sorted by image id, with absolute paths; and class names sorted by category id, the order that
        labels index.

    Raises:
        DataError: a file or folder is missing, the JSON is not valid, keys are missing, ids repeat or refer
            to nothing, a `file_name` leads out of the image folder, or no image is left.
    """
    annotations, root = Path(annotations), Path(os.path.realpath(images))
    if not root.is_dir():
        raise DataError(f"Images must lie in a folder, but {images} is none. Correct its path.")
    tree = _load(annotations)
    # Ids can be compared only when every entry has them, so the second look waits for the first.
    problems = list(_malformed(tree)) or [*_inconsistent(tree), *_escaping(tree["images"], root)]
    if problems:
        raise DataError(f"{annotations} must follow COCO's format, but:{listed(problems)}\nCorrect the file.")

    coco = COCO()
    coco.dataset = tree
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    label_of = {category: label for label, category in enumerate(sorted(coco.getCatIds()))}
    records = [
        Record(image_id, str(root / coco.imgs[image_id]["file_name"]), labels)
        for image_id in sorted(coco.getImgIds())
        if (labels := _labels(coco, image_id, label_of)) or keep_unlabelled
    ]
    if not records or not label_of:
        raise DataError(
            f"{annotations} must leave at least one image and one category, but it leaves {len(records)} and "
            f"{len(label_of)} with keep_unlabelled={keep_unlabelled}. Name another file or keep those images."
        )
    return records, [coco.cats[category]["name"] for category in label_of]


def source_digest(annotations: str | Path) -> str:
    """sha256 (hex) of the annotation file; DataError where it cannot be read."""
    try:
        return files.sha256(Path(annotations))
    except OSError as error:
        raise _unreadable(Path(annotations), error) from error


def _labels(coco: COCO, image_id: int, label_of: dict[int, int]) -> tuple[int, ...]:
    annotations = coco.imgToAnns.get(image_id, ())
    return tuple(sorted({label_of[annotation["category_id"]] for annotation in annotations}))


def _load(annotations: Path) -> Any:
    try:
        return json.loads(annotations.read_bytes(), parse_constant=_refuse_constant)
    except OSError as error:
        raise _unreadable(annotations, error) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{annotations} must be valid JSON, but {error}. It may be truncated: compare its size with the "
            "original and copy it again."
        ) from error


def _refuse_constant(token: str) -> NoReturn:
    raise ValueError(f"it holds {token}, which JSON does not know")


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"Annotations must be readable, but {path} is not ({error.strerror}). Correct the path.")


def _malformed(tree: Any) -> Iterator[str]:
    """Lists, entries and keys that are missing or of another type."""
    for section, keys in _KEYS.items():
        entries = tree.get(section) if isinstance(tree, dict) else None
        if not isinstance(entries, list):
            yield f"the list {section!r} is missing"
            continue
        for position, entry in enumerate(entries):
            for key, expected in keys.items():
                value = entry.get(key) if isinstance(entry, dict) else None
                if not isinstance(value, expected) or isinstance(value, bool):
                    found = "is missing" if value is None else f"is {value!r} instead of {expected.__name__}"
                    yield f"{section}[{position}]: {key!r} {found}"


def _inconsistent(tree: dict[str, Any]) -> Iterator[str]:
    """Ids that repeat, and ids that refer to nothing."""
    known: dict[str, set[int]] = {"images": set(), "categories": set()}
    for section, ids in known.items():
        for position, entry in enumerate(tree[section]):
            if entry["id"] in ids:
                yield f"{section}[{position}]: id {entry['id']} is used before"
            ids.add(entry["id"])
    for position, annotation in enumerate(tree["annotations"]):
        for key, section in (("image_id", "images"), ("category_id", "categories")):
            if annotation[key] not in known[section]:
                where = f"annotations[{position}] (id {annotation['id']})"
                yield f"{where}: {key} {annotation[key]} is not in {section!r}"


def _escaping(images: list[dict[str, Any]], root: Path) -> Iterator[str]:
    """File names that are no path inside `root`, or are a link out of it."""
    name_problem = files.name_checker(root)
    for position, image in enumerate(images):
        if problem := name_problem(image["file_name"]):
            yield f"images[{position}] (id {image['id']}): file_name {image['file_name']!r} {problem}"
