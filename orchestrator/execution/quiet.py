"""Sends what libraries print to a file, so that a person sees only the board."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def noise_to(path: Path) -> Iterator[TextIO]:
    """Append this process's stdout and stderr to `path`; yields a stream that still reaches the person.

    Works on the file descriptors: Ray prints from threads, from loggers that hold the old stream, and from C++.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with path.open("ab") as log, os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8") as shown:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            yield shown
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, original in zip((1, 2), kept, strict=True):
                os.dup2(original, number)
                os.close(original)
