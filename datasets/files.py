"""Where this package touches stored data: the one file to change for a store that is not a local path."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from datasets.schema import DataError


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes the name `folder` when the block ends without an error.

    After an error nothing is left; a killed process leaves a hidden `.NAME.*.tmp` that nobody reads. Where
    another process has taken the name meanwhile, its folder stays and ours is dropped, so look at what lies
    there afterwards.
    """
    folder = Path(os.path.abspath(folder))
    unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        try:
            unfinished.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def is_free(folder: Path) -> bool:
    """Whether `new_folder` may take this name: nothing is there, or an empty folder."""
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def sizes(folder: Path) -> dict[str, int]:
    """File name -> bytes, for the files directly in `folder`."""
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 text file, one after the other, without their ends; DataError where it is none."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                yield line.removesuffix("\n")
    except OSError as error:
        raise DataError(f"{path} must be readable, but it is not ({error.strerror}). Correct its path.") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} must be a text file in UTF-8, but {error}. Convert it, or correct its path."
        ) from error


@contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """A Parquet file to read from; DataError where it is missing or turns out to be damaged."""
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"A shard must be a whole Parquet file, but {path} is not ({error}). Copy or write it again."
        ) from error


def name_checker(root: str | Path) -> Callable[[str], str | None]:
    """A function from the name of a file, as an untrusted list gives it, to why it is not below `root`, or None.

    Refused are names that are no relative path, and links that lead out; `root` has no link in it.
    """
    inside = f"{root}{os.sep}"
    real_folder = lru_cache(maxsize=None)(os.path.realpath)  # COCO keeps 100,000 images in one folder

    def problem(name: str) -> str | None:
        if found := _bad_name(name):
            return found
        folder, leaf = os.path.split(f"{inside}{name}")
        path = os.path.join(real_folder(folder), leaf)
        if os.path.islink(path):
            path = os.path.realpath(path)
        return None if path.startswith(inside) else "leads out of the image folder through a link"

    return problem


def _bad_name(name: str) -> str | None:
    if not name or "\0" in name:
        return "is empty or holds a NUL"
    if name != name.encode(errors="ignore").decode():
        return "is not valid Unicode"
    if "\\" in name:
        return "holds a backslash; separate folders by /"
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", name):
        return "starts with a URL scheme or a drive"
    if name.startswith("/"):
        return "is absolute"
    if ".." in name.split("/"):
        return "goes up by '..'"
    return None
