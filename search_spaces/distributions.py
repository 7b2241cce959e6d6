"""What one parameter of a space may be: a choice, a float or int range, or the sizes of a decoder.

Value objects with one interface. `sizes` are the distinct decoder sizes for the data's number of classes, or
None while that is unknown; only `QueryNums` looks at them, and resolves into a `Choice`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

Sizes = Sequence[int] | None


class Distribution:
    """The interface; the answers here are those of a distribution that needs no resolving."""

    def problems(self, sizes: Sizes) -> list[str]:
        """Sentences without the key, which the space puts in front."""
        raise NotImplementedError

    def resolve(self, sizes: Sizes) -> Distribution:
        return self

    def takes(self, value: Any) -> bool:
        raise NotImplementedError

    def ends(self) -> tuple[Any, ...]:
        """The values that must be valid for all to be: every choice, both ends of a range."""
        raise NotImplementedError

    def suggest(self, trial: BaseTrial, key: str) -> Any:
        """Asks an Optuna trial."""
        raise NotImplementedError

    def as_data(self) -> dict[str, Any]:
        """The mapping that `parse` reads."""
        raise NotImplementedError


@dataclass(frozen=True)
class Choice(Distribution):
    values: tuple[Any, ...]

    def problems(self, sizes: Sizes) -> list[str]:
        if not self.values:
            return ["a choice must have at least one value, but got none."]
        if len(set(self.values)) < len(self.values):
            return [f"the values of a choice must be distinct, but got {_shown(self.values)}."]
        return []

    def takes(self, value: Any) -> bool:
        return value in self.values

    def ends(self) -> tuple[Any, ...]:
        return self.values

    def suggest(self, trial: BaseTrial, key: str) -> Any:
        return trial.suggest_categorical(key, self.values)

    def as_data(self) -> dict[str, Any]:
        return {"choice": list(self.values)}


@dataclass(frozen=True)
class Float(Distribution):
    low: float
    high: float
    log: bool = False

    def problems(self, sizes: Sizes) -> list[str]:
        return _range_problems(self.low, self.high, self.log)

    def takes(self, value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def ends(self) -> tuple[Any, ...]:
        return self.low, self.high

    def suggest(self, trial: BaseTrial, key: str) -> float:
        return trial.suggest_float(key, self.low, self.high, log=self.log)

    def as_data(self) -> dict[str, Any]:
        return {"float": [self.low, self.high], "log": self.log}


@dataclass(frozen=True)
class Int(Distribution):
    low: int
    high: int
    step: int = 1
    log: bool = False

    def problems(self, sizes: Sizes) -> list[str]:
        found = _range_problems(self.low, self.high, self.log)
        if self.step < 1 or (self.high - self.low) % max(self.step, 1):
            found.append(
                f"step >= 1 must divide high - low, but got step={self.step}, low={self.low}, high={self.high}."
            )
        if self.log and self.step != 1:
            found.append(f"log needs step=1, but got step={self.step}.")
        return found

    def takes(self, value: Any) -> bool:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and self.low <= value <= self.high and (value - self.low) % self.step == 0

    def ends(self) -> tuple[Any, ...]:
        return self.low, self.high

    def suggest(self, trial: BaseTrial, key: str) -> int:
        return trial.suggest_int(key, self.low, self.high, step=self.step, log=self.log)

    def as_data(self) -> dict[str, Any]:
        return {"int": [self.low, self.high], "step": self.step, "log": self.log}


@dataclass(frozen=True)
class QueryNums(Distribution):
    """Sizes of a decoder; None: all distinct ones."""

    values: tuple[int, ...] | None

    def problems(self, sizes: Sizes) -> list[str]:
        if self.values is None:
            return []
        found = Choice(self.values).problems(sizes)
        idle = [value for value in self.values if sizes is not None and value not in sizes]
        if idle and sizes is not None:
            found.append(
                f"query_nums must be distinct decoder sizes, but got {_shown(idle)}: too large for "
                f"{max(sizes)} classes, or a smaller decoder with idle queries. Sizes: {_shown(sizes)}."
            )
        return found

    def resolve(self, sizes: Sizes) -> Distribution:
        if self.values is None and sizes is None:
            return self
        return Choice(tuple(sizes or ()) if self.values is None else self.values)

    def takes(self, value: Any) -> bool:  # unresolved, so that only its kind can be judged
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1

    def ends(self) -> tuple[Any, ...]:
        return self.values or ()

    def as_data(self) -> dict[str, Any]:
        return {"query_nums": "all" if self.values is None else list(self.values)}


_OPTIONS: dict[str, tuple[str, ...]] = {
    "choice": (),
    "float": ("log",),
    "int": ("step", "log"),
    "query_nums": (),
}


def parse(spec: Any) -> Distribution:
    """The distribution in a parameter's mapping, whose scalars are text; `when` is left to the space.

    Raises:
        ValueError: what the mapping lacks or should not have; the sentence is without the key.
    """
    kinds = [kind for kind in _OPTIONS if isinstance(spec, Mapping) and kind in spec]
    if len(kinds) != 1:
        raise ValueError(f"must be a mapping with one of {_shown(_OPTIONS)}, but got {spec}.")
    [kind] = kinds
    unknown = set(spec) - {kind, "when", *_OPTIONS[kind]}
    if unknown:
        allowed = _shown([*_OPTIONS[kind], "when"])
        raise ValueError(f"{kind} goes only with {allowed}, but got {_shown(sorted(unknown))}.")
    if kind == "query_nums" and spec[kind] == "all":
        return QueryNums(None)
    if not isinstance(spec[kind], list) or not all(isinstance(item, str) for item in spec[kind]):
        raise ValueError(f"{kind} must be followed by a list of plain values, but got {spec[kind]}.")
    values = tuple(scalar(item) for item in spec[kind])
    options = {name: scalar(spec[name]) for name in _OPTIONS[kind] if name in spec}
    if kind == "choice":
        return Choice(values)
    if not isinstance(options.get("log", False), bool):
        raise ValueError(f"log must be true or false, but got {options['log']}.")
    whole = (*values, options.get("step", 1)) if kind != "float" else ()
    if any(type(value) is not int for value in whole):
        raise ValueError(f"{kind} takes whole numbers, but got {_shown(whole)}.")
    if kind == "query_nums":
        return QueryNums(values)
    if len(values) != 2 or not all(type(value) in (int, float) for value in values):
        raise ValueError(f"{kind} must be followed by [low, high], two numbers, but got {_shown(values)}.")
    return Int(*values, **options) if kind == "int" else Float(float(values[0]), float(values[1]), **options)


def scalar(text: Any) -> Any:
    """Text as a person means it: a number (`3e-4` too), true, false, null, or itself."""
    for number in (int, float):
        try:
            return number(text)
        except (TypeError, ValueError):
            pass
    return {"true": True, "false": False, "null": None}.get(str(text).lower(), text)


def _range_problems(low: float, high: float, log: bool) -> list[str]:
    found = []
    if not (low <= high and math.isfinite(low) and math.isfinite(high)):
        found.append(f"low <= high must hold for finite bounds, but got low={low}, high={high}.")
    if log and not low > 0:
        found.append(f"log needs low > 0, but got low={low}.")
    return found


def _shown(values: Any) -> str:
    return ", ".join(map(str, values))
