"""What a data set is, in plain values: records before writing, a manifest after it.

Nothing here touches a file, so every other module of the package can use these types.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

FORMAT = 1
"""Version of the manifest and of the columns in the shards; raised when an older reader would be misled."""

_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.parquet")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class DataError(ValueError):
    """The data or the request about it is wrong: what must hold, what was found, and the way out."""


def listed(problems: Sequence[str], shown: int = 10) -> str:
    """The first problems, one an indented line, and how many more there are: a part of a DataError's message."""
    more = [f"and {len(problems) - shown} more"] if len(problems) > shown else []
    return "".join(f"\n  {line}" for line in [*problems[:shown], *more])


@dataclass(frozen=True)
class Record:
    """One labelled image, not yet read.

    Raises:
        DataError: labels are not class indices in increasing order without repeats.
    """

    image_id: int
    path: str
    labels: tuple[int, ...]

    def __post_init__(self) -> None:
        if list(self.labels) != sorted(set(self.labels)) or (self.labels and self.labels[0] < 0):
            raise DataError(
                f"labels must be class indices >= 0 in increasing order without repeats, but image "
                f"{self.image_id} has {self.labels}. Use tuple(sorted(set(labels)))."
            )


@dataclass(frozen=True)
class BadImage:
    """An image that was left out of the shards."""

    image_id: int
    path: str
    """Relative to the image folder."""
    reason: str


@dataclass(frozen=True)
class Shard:
    """One Parquet file of examples."""

    file: str
    """A plain name; shards lie beside their manifest."""
    rows: int
    row_groups: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """One split of a data set as shards; a shard set without its manifest is not read.

    Raises:
        DataError: counts do not add up, or a name or hash is not one.
    """

    format: int
    split: str
    num_images: int
    classes: tuple[str, ...]
    positives: tuple[int, ...]
    """Images that carry the class, for each class."""
    shards: tuple[Shard, ...]
    bad_images: tuple[BadImage, ...] = ()
    source: dict[str, Any] = field(default_factory=dict)
    """Settings and content digests that decided what was written; no paths, so that `digest` travels."""

    def __post_init__(self) -> None:
        problems = [
            f"{shard.file!r} is not the plain name of a .parquet file"
            for shard in self.shards
            if not _SHARD_NAME.fullmatch(shard.file)
        ]
        problems += [
            f"sha256 of {shard.file!r} is {shard.sha256!r} instead of 64 hexadecimal digits"
            for shard in self.shards
            if not _SHA256.fullmatch(shard.sha256)
        ]
        if len(self.positives) != len(self.classes):
            problems.append(f"{len(self.classes)} classes but {len(self.positives)} counts of positives")
        if (rows := sum(shard.rows for shard in self.shards)) != self.num_images:
            problems.append(f"num_images is {self.num_images} but the shards have {rows} rows")
        if len({shard.file for shard in self.shards}) != len(self.shards):
            problems.append("a shard is listed twice")
        problems += [f"source names the location {value!r}" for value in _locations(self.source)]
        if problems:
            raise DataError(
                f"A manifest must agree with itself, but {'; '.join(problems)}. "
                "It was edited or damaged: copy it again, or write the shards again."
            )

    @property
    def digest(self) -> str:
        """sha256 (hex) of the canonical JSON: the same wherever the folder lies."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Canonical: sorted keys, one way of spacing, ASCII."""
        return json.dumps(asdict(self), sort_keys=True, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Inverse of `to_json`.

        Raises:
            DataError: not JSON, another format version, keys missing or unknown, values of another type, or
                values that contradict each other.
        """
        try:
            tree = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"A manifest must be JSON, but it cannot be parsed ({error}). Write the shards again."
            ) from error
        if not isinstance(tree, dict) or tree.get("format") != FORMAT:
            found = tree.get("format") if isinstance(tree, dict) else type(tree).__name__
            raise DataError(
                f"A manifest must have format {FORMAT}, but this one has {found!r}. Write the shards again "
                "with this version of the code."
            )
        try:
            return cls(
                **{
                    **_typed(tree, {"format": int, "split": str, "num_images": int, "source": dict}, cls),
                    "classes": tuple(_of_type(name, str) for name in tree["classes"]),
                    "positives": tuple(_of_type(count, int) for count in tree["positives"]),
                    "shards": tuple(Shard(**_typed(shard, _SHARD_TYPES, Shard)) for shard in tree["shards"]),
                    "bad_images": tuple(
                        BadImage(**_typed(image, _BAD_IMAGE_TYPES, BadImage)) for image in tree["bad_images"]
                    ),
                }
            )
        except (KeyError, TypeError) as error:
            raise DataError(
                f"A manifest must hold the fields of format {FORMAT}, but {error}. Write the shards again."
            ) from error


_SHARD_TYPES: dict[str, type] = {"file": str, "rows": int, "row_groups": int, "bytes": int, "sha256": str}
_BAD_IMAGE_TYPES: dict[str, type] = {"image_id": int, "path": str, "reason": str}


def _typed(tree: object, types: dict[str, type], owner: type) -> dict[str, Any]:
    """The entries named in `types`; TypeError for a missing, unknown or ill-typed one."""
    fields = owner.__dataclass_fields__  # type: ignore[attr-defined]
    if not isinstance(tree, dict) or set(tree) != set(fields):
        found = sorted(tree) if isinstance(tree, dict) else type(tree).__name__
        raise TypeError(f"{owner.__name__} has the fields {found} instead of {sorted(fields)}")
    return {key: _of_type(tree[key], expected) for key, expected in types.items()}


def _of_type(value: object, expected: type) -> Any:
    if not isinstance(value, expected) or isinstance(value, bool):
        raise TypeError(f"{value!r} is not {expected.__name__}")
    return value


def _locations(value: object) -> list[str]:
    """Strings inside `value` that name a place: an absolute path or a URI."""
    if isinstance(value, dict):
        return [found for item in value.items() for part in item for found in _locations(part)]
    if isinstance(value, list | tuple):
        return [found for part in value for found in _locations(part)]
    return [value] if isinstance(value, str) and (value.startswith("/") or "://" in value) else []
