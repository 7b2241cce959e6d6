"""Named YAML files: found by name or path, and read as nested text.

Every scalar stays the text that the file holds, because YAML 1.1 reads `3e-4` as a string and `on` as true;
what a text means is for the reader who knows the declared type. Experiments and spaces are both such files.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml


def names(folder: Path) -> list[str]:
    """The names that `folder` offers, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def find(name_or_path: str | os.PathLike[str], folder: Path, noun: str) -> Path:
    """The file of a name in `folder`, or the path of a file anywhere; `noun` is the word used in errors.

    Raises:
        ValueError: no such name (says the nearest and all of them) or no such file.
    """
    text = os.fspath(name_or_path)
    if text.endswith((".yaml", ".yml")) or os.sep in text:
        path = Path(text).expanduser()
        if not path.is_file():
            raise ValueError(f"The path of a {noun} must be a YAML file, but there is no file {text}.")
        return path
    known = names(folder)
    if text not in known:
        close = difflib.get_close_matches(text, known, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ValueError(
            f"There is no {noun} named {text!r}.{hint} Known: {', '.join(known)}; or give the path of a .yaml file."
        )
    return folder / f"{text}.yaml"


def read(path: Path) -> dict[str, Any]:
    """The nested mapping in a YAML file, its scalars as text; an empty file is an empty mapping.

    Raises:
        ValueError: the file cannot be read, is no YAML, gives a key twice, or is no mapping.
    """
    try:
        # _Reader builds nothing but str, list and dict.
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Reader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping of keys to values, but holds {content!r}.")
    return content


class _Reader(yaml.BaseLoader):
    """BaseLoader, but a key given twice is an error where YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # refused by the base class
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} is given twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)
