"""A value as text: read by its declared type, written into a word, described in a sentence.

Everything passes through text, so a word, a YAML file and a sampled value mean the same thing, and a bool
never slips into a number. Checking is pydantic's work; this file prepares its input and phrases its errors.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

_NOTHING = ("", "null", "none", "~")
_PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_BOUNDS = {
    "greater_than": ("gt", ">"),
    "greater_than_equal": ("ge", ">="),
    "less_than": ("lt", "<"),
    "less_than_equal": ("le", "<="),
}


def read(value: Any, annotation: Any) -> Any:
    """`value` as pydantic can take it for `annotation`: None, text, an item of a Literal, a tuple of texts.

    What does not fit is returned as it is, for pydantic to refuse.
    """
    optional, kind = _strip_optional(annotation)
    if value is None or (optional and isinstance(value, str) and value.strip().lower() in _NOTHING):
        return None
    if get_origin(kind) is tuple:
        listed = isinstance(value, list | tuple)
        items = value if listed else str(value).strip().removeprefix("[").removesuffix("]").split(",")
        texts = tuple(str(item).strip().strip("'\"") for item in items)
        return () if texts == ("",) else texts
    if isinstance(value, list | tuple | Mapping):
        return value
    text = str(value)
    if get_origin(kind) is Literal:
        return next((item for item in get_args(kind) if str(item) == text.strip()), text)
    return text


def write(value: Any) -> str:
    """The text that `read` turns back into `value`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(write(item) for item in value)
    return str(value)


def describe(annotation: Any) -> str:
    """What a field takes, in words."""
    optional, kind = _strip_optional(annotation)
    if get_origin(kind) is Literal:
        said = "one of " + ", ".join(map(str, get_args(kind)))
    elif get_origin(kind) is tuple:
        items = [item for item in get_args(kind) if item is not Ellipsis]
        many = "a list, each item" if Ellipsis in get_args(kind) else f"a list of {len(items)}, each"
        said = f"{many} {describe(items[0])}"
    else:
        said = _PLAIN.get(kind, str(kind))
    return f"{said}, or null" if optional else said


def sentence(error: Mapping[str, Any], annotations: Mapping[str, Any]) -> str:
    """One of pydantic's errors (`ValidationError.errors()`) with its full dotted key and the way out."""
    key = ".".join(part for part in error["loc"] if isinstance(part, str))
    got, context = write(error["input"]), error.get("ctx", {})
    if error["type"] == "value_error":  # a validator of the tree: its sentence is already complete
        return f"{key}: {context['error']}" if key else str(context["error"])
    if error["type"] in _BOUNDS:
        name, sign = _BOUNDS[error["type"]]
        return f"{key} {sign} {context[name]:g} must hold, but got {key}={got}."
    if error["type"] == "string_pattern_mismatch":
        return f"{key} must match {context['pattern']}, but got {key}={got}."
    kind = annotations[key]
    return f"{key} must be {describe(kind)}, but got {key}={got}.{did_you_mean(got, _choices(kind))}"


def did_you_mean(word: str, valid: Collection[str]) -> str:
    """` Nearest: a, b.` with the names closest to `word`, or nothing."""
    # A person often knows only the last part of a dotted key (`lr`) or writes it in the wrong group.
    leaf = word.rpartition(".")[2]
    initials = "".join(part[:1] for part in leaf.split("_"))  # learning_rate: lr
    close = [name for name in valid if name.rpartition(".")[2] in (leaf, initials)]
    close += [name for name in difflib.get_close_matches(word, valid, n=3, cutoff=0.55) if name not in close]
    return f" Nearest: {', '.join(close[:3])}." if close else ""


def _strip_optional(annotation: Any) -> tuple[bool, Any]:
    if get_origin(annotation) not in (Union, UnionType):
        return False, annotation
    [kind] = [part for part in get_args(annotation) if part is not NoneType]
    return True, kind


def _choices(annotation: Any) -> list[str]:
    kind = _strip_optional(annotation)[1]
    return [str(item) for item in get_args(kind)] if get_origin(kind) is Literal else []
