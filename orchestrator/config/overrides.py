"""A YAML file, override words and sampled values become one checked `Experiment`.

All three are the same thing, dotted keys with values (`optim.lr=3e-4`), and are laid over each other: the
file first, then the words, then the sampled values. The mistakes of all three are raised together.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ValidationError

from orchestrator.config import backbones, brief, values
from orchestrator.config.experiment import Experiment
from search_spaces import yaml_files

FOLDER = Path(__file__).parent


class RequestError(ValueError):
    """The request is wrong and nothing was started; a command prints every problem and exits with 2."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)  # as args, so that the error survives pickling

    @property
    def problems(self) -> tuple[str, ...]:
        return self.args

    def __str__(self) -> str:
        return "\n".join(self.problems)


def load(
    name_or_path: str | os.PathLike[str],
    words: Iterable[str] = (),
    sampled: Mapping[str, Any] | None = None,
) -> Experiment:
    """The experiment of a name in this folder, or of a YAML file anywhere; precedence file < words < sampled.

    Without a `name` of its own it is named after its file. A file may say only what differs from another one, which
    it names as `base`.

    Raises:
        RequestError: holds every mistake in the file, the words and the sampled values.
    """
    problems: list[str] = []
    flat: dict[str, Any] = {}
    try:
        path = yaml_files.find(name_or_path, FOLDER, "experiment")
        flat = {"name": path.stem} | _file(path, problems)
    except ValueError as error:
        problems.append(str(error))
    flat |= _canonical(_split(words, problems), problems)
    flat |= _canonical((sampled or {}).items(), problems)
    return _resolve(flat, problems)


def with_overrides(experiment: Experiment, overrides: Mapping[str, Any]) -> Experiment:
    """`experiment` with other values (a trial's sampled ones), checked like everything else.

    Raises:
        RequestError: holds every mistake in `overrides` and in what they make of the experiment.
    """
    problems: list[str] = []
    return _resolve(_flat(experiment) | _canonical(overrides.items(), problems), problems)


def apply(tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A new nested dict: `tree` under our own keys with dotted `overrides` laid over it; values unchecked.

    Raises:
        RequestError: holds every unknown key, and every key that either argument gives two values.
    """
    problems: list[str] = []
    flat = _canonical(_leaves(tree), problems) | _canonical(overrides.items(), problems)
    if problems:
        raise RequestError(*problems)
    return _nest(flat)


def parse_words(words: Iterable[str]) -> dict[str, str]:
    """`["optim.lr=3e-4"]` -> `{"optim.lr": "3e-4"}`; the keys are not yet checked.

    Raises:
        RequestError: holds every word that is not `key=value`, and every key with two values.
    """
    problems: list[str] = []
    parsed: dict[str, str] = {}
    for key, text in _split(words, problems):
        if parsed.setdefault(key, text) != text:
            problems.append(f"{key} must have one value, but got {parsed[key]} and {text}. Keep one of them.")
    if problems:
        raise RequestError(*problems)
    return parsed


def override_words(source: Experiment | Mapping[str, Any]) -> list[str]:
    """Each dotted key as a word (an experiment: all of them), quoted for a shell; `load` reads them back."""
    flat = _flat(source) if isinstance(source, Experiment) else source
    return [shlex.quote(f"{key}={values.write(value)}") for key, value in flat.items()]


@cache
def keys() -> Mapping[str, Any]:
    """Every override key with the type that its field declares; other spellings are in `brief.ALIASES`."""
    return MappingProxyType(dict(_fields(Experiment)))


def _file(path: Path, problems: list[str], above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a file over those of its base; ValueError for a base that is not there or leads back."""
    tree = yaml_files.read(path)
    base, flat = tree.pop("base", None), {}
    if base is not None:
        below = yaml_files.find(str(base), FOLDER, "base experiment")
        chain = (*above, path)
        if below in chain:
            raise ValueError(
                f"An experiment cannot be its own base, but {' -> '.join(p.stem for p in (*chain, below))}."
            )
        flat = {key: value for key, value in _file(below, problems, chain).items() if key != "name"}
    return flat | _canonical(_leaves(tree), problems)


def _fields(node: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in node.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field.annotation


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, leaf = key.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[leaf] = value
    return tree


def _flat(experiment: Experiment) -> dict[str, Any]:
    return dict(_leaves(experiment.model_dump()))


def _split(words: Iterable[str], problems: list[str]) -> list[tuple[str, str]]:
    pairs = [word.partition("=") for word in words]
    problems += [
        f"An override must have the form key=value, but got {key + equals + text!r}."
        for key, equals, text in pairs
        if not (key and equals)
    ]
    return [(key, text) for key, equals, text in pairs if key and equals]


def _canonical(pairs: Iterable[tuple[str, Any]], problems: list[str]) -> dict[str, Any]:
    """One layer under our own keys; unknown keys, and two values for one key, are added to `problems`."""
    flat: dict[str, Any] = {}
    said: dict[str, str] = {}
    for word, given in pairs:
        try:
            key, value = brief.translate(word, given)
        except ValueError as error:
            problems.append(str(error))
            continue
        if key not in keys():
            if not (_is_group(key) and given in ("", None)):  # `optim:` with nothing below it says nothing
                problems.append(_unknown(key))
            continue
        value, text = values.read(value, keys()[key]), f"{word}={values.write(given)}"
        if flat.setdefault(key, value) != value:
            problems.append(f"{key} must have one value, but got {said[key]} and {text}. Keep one of them.")
        said.setdefault(key, text)
    return flat


def _is_group(key: str) -> bool:
    return any(name.startswith(f"{key}.") for name in keys())


def _unknown(key: str) -> str:
    if _is_group(key):
        inside = [name for name in keys() if name.startswith(f"{key}.")]
        return f"{key} is a group of keys and takes no value itself. Its keys: {', '.join(inside)}."
    return f"{key} is not a key of an experiment.{values.did_you_mean(key, [*keys(), *brief.ALIASES])}"


def _resolve(flat: Mapping[str, Any], problems: list[str]) -> Experiment:
    """The tree of canonical `flat`, unless `problems` or the tree itself says no."""
    experiment, mistakes = None, []
    try:
        experiment = Experiment.model_validate(_nest(flat))
    except ValidationError as error:
        # Without a name there was no file: a word can still be judged, but not how it goes with the others.
        alone = "name" not in flat
        mistakes = [
            values.sentence(item, keys())
            for item in error.errors()
            if not (alone and (item["loc"] == ("name",) or item["type"] == "value_error"))
        ]
    # In a broken tree the names are still looked up as they were given, so that nothing is found only later.
    mistakes += _unknown_names(_flat(experiment) if experiment else flat)
    if experiment is None or problems or mistakes:
        raise RequestError(*problems, *mistakes)
    return experiment


def _unknown_names(flat: Mapping[str, Any]) -> list[str]:
    """Values that name something elsewhere in the tree or outside of it, which pydantic cannot know."""
    backbone, pretrained = str(flat.get("model.backbone", "resnet50")), flat.get("model.pretrained") is True
    problem = backbones.check(backbone, pretrained=pretrained)
    grouped = [key for key in flat.get("sweep.pruner.group_by") or () if key not in keys()]
    return ([problem] if problem else []) + [f"sweep.pruner.group_by: {_unknown(key)}" for key in grouped]
