"""Where this package touches stored data: the one file to change for a store that is not a local path."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
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
