"""Word vectors for class names, read from the text files in which GloVe, word2vec and fastText are published.

A line is a word and its numbers with single spaces between; word2vec and fastText begin with a line that counts
words and numbers, fastText ends its lines with a space, and a few words of GloVe hold spaces. Files of gigabytes
are read line by line, and only the wanted lines are taken apart.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from datasets.schema import DataError, listed

DIGIT_WORDS = Path(__file__).with_name("digit_words.txt")
"""Vectors for the words `zero` .. `nine` that say how the digits are written by hand, not how the words are used."""

DIGIT_ATTRIBUTES = (
    *(
        f"ink at the {row}, {column}"
        for row in ("top", "upper half", "middle", "lower half", "bottom")
        for column in ("left", "centre", "right")
    ),
    "closed loop in the upper half",
    "closed loop in the lower half",
    "open to the upper left",
    "open to the upper right",
    "open to the lower left",
    "open to the lower right",
    "curved strokes",
)
"""What the numbers of `DIGIT_WORDS` mean, in their order; each was judged by eye, from -1 (no) to 1 (yes)."""

_MAX_PROBLEMS = 10


@dataclass(frozen=True, eq=False)
class Words:
    """One vector for each class."""

    names: tuple[str, ...]
    vectors: np.ndarray
    """(K, W) float32, as they stand in the file: not normalised."""


def read(path: str | Path, names: Sequence[str]) -> Words:
    """The vectors of `names`; the file is not kept in memory.

    A name is looked up as it is, with its parts joined by `_`, `-` or a space ("traffic light", "hot-dog"), and in
    lower case; where none of these is in the file, the vectors of its parts are averaged. The first of several
    lines of one word counts.

    Args:
        path: UTF-8 text, compressed by gzip where the name ends in `.gz`.
        names: of the classes.

    Raises:
        DataError: the file is missing or is none of the three formats, a line has too few numbers or those of a
            wanted word are not finite or all zero, or names are not in it (all are listed).
    """
    path = Path(path)
    wanted = {spelling for name in names for spelling in (*_spellings(name), *_spelled_parts(name))}
    found, too_long = _scan(path, {spelling.encode() for spelling in wanted})
    vectors = [_vector(name, found) for name in names]
    missing = [_describe(name, found, too_long) for name, vector in zip(names, vectors, strict=True) if vector is None]
    if missing:
        raise DataError(
            f"{path} must hold a vector for each class, but {len(missing)} of {len(names)} are not in it:"
            f"{listed(missing)}\nName a larger file, or add a line for each."
        )
    return Words(tuple(names), np.stack([vector for vector in vectors if vector is not None]))


def digest(words: Words) -> str:
    """sha256 (hex) of names and vectors."""
    head = json.dumps([words.names, words.vectors.shape]).encode()
    return hashlib.sha256(head + words.vectors.astype("<f4").tobytes()).hexdigest()


def _parts(name: str) -> list[str]:
    return [part for part in re.split("[ _-]+", name) if part]


def _spellings(name: str) -> list[str]:
    """How a name may be written in a file, the best first."""
    written = [name, *(mark.join(_parts(name)) for mark in "_- ")]
    return list(dict.fromkeys([*written, *(spelling.lower() for spelling in written)]))


def _spelled_parts(name: str) -> Iterator[str]:
    for part in _parts(name):
        yield from (part, part.lower())


def _vector(name: str, found: dict[str, np.ndarray]) -> np.ndarray | None:
    whole = _first(_spellings(name), found)
    if whole is not None:
        return whole
    parts = [_first((part, part.lower()), found) for part in _parts(name)]
    present = [part for part in parts if part is not None]
    return np.mean(present, axis=0) if present and len(present) == len(parts) else None


def _first(spellings: Iterable[str], found: dict[str, np.ndarray]) -> np.ndarray | None:
    return next((found[spelling] for spelling in spellings if spelling in found), None)


def _describe(name: str, found: dict[str, np.ndarray], too_long: dict[str, str]) -> str:
    """What is missing of a class, and where a line of it was passed over."""
    absent = [part for part in _parts(name) if part not in found and part.lower() not in found]
    of_it = f" (nor its part {absent[0]!r})" if len(_parts(name)) > 1 else ""
    hints = [too_long[spelling] for spelling in (*_spellings(name), *_spelled_parts(name)) if spelling in too_long]
    return f"{name!r}{of_it}{f'; {hints[0]}' if hints else ''}"


def _scan(path: Path, wanted: set[bytes]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The vectors of the wanted words; and where a line begins with a wanted word but has too many numbers.

    Too many numbers are no mistake by themselves: the first may be part of a word with spaces ("route 66").
    """
    heads = {word.partition(b" ")[0] for word in wanted}
    found: dict[str, np.ndarray] = {}
    too_long: dict[str, str] = {}
    problems: list[str] = []
    width, lines = _width(_numbered_lines(path))
    if width < 1:
        raise _malformed(path, ["line 1 has no numbers"])
    for number, line in lines:
        num_spaces = line.count(b" ")
        if num_spaces < width:
            problems += [f"line {number} has {num_spaces} numbers instead of {width}"] if line else []
        elif line[: line.index(b" ")] in heads:
            word, *fields = line.rsplit(b" ", width)
            if word not in wanted:
                if num_spaces > width and (head := word.partition(b" ")[0]) in wanted:
                    too_long[head.decode()] = f"line {number} has {num_spaces} numbers instead of {width}"
            elif word.decode() not in found:
                try:
                    found[word.decode()] = _numbers(fields)
                except ValueError as error:
                    problems.append(f"line {number}: {error}")
        if len(problems) == _MAX_PROBLEMS:
            break
    if problems:
        raise _malformed(path, problems)
    return found, too_long


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines from 1 without the spaces at their ends; bytes, in which U+00A0 and the like are no spaces."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield number, line.rstrip()
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"word vectors must be readable, but {path} is not ({reason}). Correct data.word_vectors, or copy the "
            "file again."
        ) from error


def _width(lines: Iterator[tuple[int, bytes]]) -> tuple[int, Iterator[tuple[int, bytes]]]:
    """How many numbers follow a word, by the first line; and the lines of words."""
    number, line = next(lines, (1, b""))
    fields = line.split(b" ")
    if len(fields) == 2 and all(field.isdigit() for field in fields):  # a header: so many words, so many numbers
        return int(fields[1]), lines
    num_trailing = next((n for n, field in enumerate(reversed(fields)) if not _is_number(field)), len(fields))
    # A word may hold spaces, and may itself be a number.
    return min(num_trailing, len(fields) - 1), chain([(number, line)], lines)


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _numbers(fields: Sequence[bytes]) -> np.ndarray:
    """float32; ValueError where one is no finite number, or all are zero and so have no direction."""
    try:
        with np.errstate(over="ignore"):
            vector = np.array([float(field) for field in fields]).astype(np.float32)
    except ValueError as error:
        raise ValueError(f"it must hold a word and {len(fields)} numbers, but {error}") from error
    if not np.isfinite(vector).all() or not vector.any():
        raise ValueError("numbers must be finite and not all zero")
    return vector


def _malformed(path: Path, problems: Sequence[str]) -> DataError:
    return DataError(
        f"{path} must hold a word and its numbers in each line, as the text files of GloVe, word2vec and fastText do "
        f"(not a .bin or a .zip), but:{listed(problems)}\nCorrect the file, or download it again."
    )
