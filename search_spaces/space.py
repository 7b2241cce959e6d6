"""A space: what may vary in a sweep, as data read from a YAML file.

    parameters:
      model.head: {choice: [ml_decoder, gap]}
      optim.lr: {float: [3e-4, 1e-2], log: true}
      model.query_num: {query_nums: all, when: {model.head: ml_decoder}}
    points:
      - {model.head: ml_decoder, optim.lr: 1e-3}

`parameters` are asked in the order of the file; `when` asks only if earlier parameters took one of the
values. `points` are tried first, each as far as it goes. `query_nums` depends on the number of classes: a
decoder has far fewer distinct sizes than classes, so `all` means those, and a list is checked against them.
The arithmetic is `trainables`'; whoever checks or resolves a space brings it, as a callable from the number
of classes to the sizes.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces import distributions, yaml_files
from search_spaces.distributions import Distribution, Sizes

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

FOLDER = Path(__file__).parent

QuerySizes = Callable[[int], Sequence[int]]
Pairs = tuple[tuple[str, Any], ...]
"""A mapping that is frozen, hashable and can be pickled."""


class SpaceError(ValueError):
    """A space that cannot be searched; holds every problem found."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)  # as args, so that the error survives pickling

    @property
    def problems(self) -> tuple[str, ...]:
        return self.args

    def __str__(self) -> str:
        return "\n".join(self.problems)


@dataclass(frozen=True)
class Parameter:
    """One override key and what it may be, asked when earlier parameters have one of the values in `when`."""

    key: str
    distribution: Distribution
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def is_asked(self, values: Mapping[str, Any]) -> bool:
        return all(key in values and values[key] in allowed for key, allowed in self.when)


@dataclass(frozen=True)
class ResolvedSpace:
    """A space for a known number of classes, ready to be searched."""

    parameters: tuple[Parameter, ...]
    first: tuple[Pairs, ...] = ()

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """One configuration, each parameter asked of the Optuna trial, in order."""
        values: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.is_asked(values):
                values[parameter.key] = parameter.distribution.suggest(trial, parameter.key)
        return values

    def points(self) -> list[dict[str, Any]]:
        """The configurations to try first, possibly partial."""
        return [dict(point) for point in self.first]

    def ends(self) -> list[tuple[str, Any]]:
        """Every key with each of its choices or both ends of its range: what a dry run should check."""
        return [(item.key, value) for item in self.parameters for value in item.distribution.ends()]

    @property
    def digest(self) -> str:
        """Hash of the content; the order counts, since it decides what a sampler is asked."""
        parameters = [[item.key, item.distribution.as_data(), item.when] for item in self.parameters]
        return hashlib.sha256(json.dumps([parameters, self.points()]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Space:
    """A space as its file states it."""

    name: str
    parameters: tuple[Parameter, ...]
    points: tuple[Pairs, ...] = ()

    def problems(self, num_classes: int | None, valid_keys: Collection[str], query_nums: QuerySizes) -> list[str]:
        """Every reason not to search this space; empty if there is none.

        `num_classes` None (the data is not read yet) leaves only the decoder sizes unchecked.
        """
        sizes = query_nums(num_classes) if num_classes is not None else None
        found = [f"{key}: {problem}" for key, problem in self._range_problems(sizes)]
        earlier: dict[str, Distribution] = {}
        for parameter in self.parameters:
            if parameter.key not in valid_keys:
                found.append(f"{parameter.key}: must be an override key.{_nearest(parameter.key, valid_keys)}")
            found += _when_problems(parameter, earlier)
            earlier[parameter.key] = parameter.distribution.resolve(sizes)
        for number, point in enumerate(self.points, start=1):
            found += [f"point {number}: {problem}" for problem in self._point_problems(dict(point), earlier)]
        return [f"space {self.name}: {problem}" for problem in found]

    def resolve(self, num_classes: int, query_nums: QuerySizes) -> ResolvedSpace:
        """The space for `num_classes`, its `query_nums` spelled out.

        Raises:
            SpaceError: a range or a list of sizes that cannot be searched; `problems` finds more.
        """
        sizes = query_nums(num_classes)
        if found := self._range_problems(sizes):
            raise SpaceError(*(f"space {self.name}: {key}: {problem}" for key, problem in found))
        resolved = (Parameter(p.key, p.distribution.resolve(sizes), p.when) for p in self.parameters)
        return ResolvedSpace(tuple(resolved), self.points)

    def _range_problems(self, sizes: Sizes) -> list[tuple[str, str]]:
        return [(item.key, problem) for item in self.parameters for problem in item.distribution.problems(sizes)]

    def _point_problems(self, point: dict[str, Any], known: Mapping[str, Distribution]) -> Iterator[str]:
        for key, value in point.items():
            if key not in known:
                yield f"{key} must be a parameter of the space.{_nearest(key, known)}"
            elif not known[key].takes(value):
                yield f"{key} must lie in {known[key].as_data()}, but got {key}={value}."
        for parameter in self.parameters:
            # A condition that the point leaves open may still come true.
            said = [(key, point[key]) for key, allowed in parameter.when if point.get(key, allowed[0]) not in allowed]
            if parameter.key in point and said:
                facts = ", ".join(f"{key}={value}" for key, value in said)
                yield f"{parameter.key} is not asked, and would be ignored, where {facts}. Remove it."


def read(name_or_path: str | os.PathLike[str]) -> Space:
    """The space of a name in this folder, or of a YAML file anywhere; `Space.problems` checks its ranges.

    Raises:
        SpaceError: no such file, or every part of it that is not in the form shown above.
    """
    try:
        path = yaml_files.find(name_or_path, FOLDER, "space")
        content = yaml_files.read(path)
    except ValueError as error:
        raise SpaceError(str(error)) from error
    problems = [
        f"must hold only `parameters` and `points`, but got {key!r}."
        for key in content
        if key not in ("parameters", "points")
    ]
    parameters, points = content.get("parameters"), content.get("points") or []
    if not isinstance(parameters, dict) or not parameters:
        problems.append("`parameters` must map at least one override key to what it may be.")
        parameters = {}
    if not isinstance(points, list) or not all(_is_flat(point) for point in points):
        problems.append(f"`points` must be a list of mappings from keys to plain values, but got {points}.")
        points = []
    read_parameters = []
    for key, spec in parameters.items():
        try:
            read_parameters.append(Parameter(key, distributions.parse(spec), _when(spec.get("when") or {})))
        except ValueError as error:
            problems.append(f"{key}: {error}")
    if problems:
        raise SpaceError(*(f"space {path.stem}: {problem}" for problem in problems))
    pairs = (tuple((key, distributions.scalar(value)) for key, value in point.items()) for point in points)
    return Space(path.stem, tuple(read_parameters), tuple(pairs))


def _when(spec: Any) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    if not isinstance(spec, dict):
        raise ValueError(f"when must map earlier keys to values, but got {spec}.")
    listed = {key: value if isinstance(value, list) else [value] for key, value in spec.items()}
    if not all(items and all(isinstance(item, str) for item in items) for items in listed.values()):
        raise ValueError(f"when must map each key to a value or a list of values, but got {spec}.")
    return tuple((key, tuple(map(distributions.scalar, items))) for key, items in listed.items())


def _when_problems(parameter: Parameter, earlier: Mapping[str, Distribution]) -> Iterator[str]:
    for key, allowed in parameter.when:
        if key not in earlier:
            hint = _nearest(key, earlier)
            yield f"{parameter.key}: when must name an earlier parameter, but got {key}.{hint}"
            continue
        for value in allowed:
            if not earlier[key].takes(value):
                data = earlier[key].as_data()
                yield f"{parameter.key}: when {key}={value} can never hold, since {key} is {data}."


def _is_flat(point: Any) -> bool:
    return isinstance(point, dict) and all(isinstance(value, str) for value in point.values())


def _nearest(word: str, valid: Collection[str]) -> str:
    close = difflib.get_close_matches(word, valid, n=2)
    return f" Nearest: {', '.join(close)}." if close else ""
