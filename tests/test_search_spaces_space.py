"""Spaces: read from data, checked all at once, resolved for a number of classes, asked of Optuna."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from orchestrator.config import brief, overrides
from orchestrator.config.overrides import keys, load, with_overrides
from search_spaces import space as spaces
from search_spaces import yaml_files
from search_spaces.space import ResolvedSpace, Space, SpaceError
from trainables.groups import distinct_query_nums

SHIPPED = yaml_files.names(spaces.FOLDER)
EXPERIMENTS = [load(name) for name in yaml_files.names(overrides.FOLDER)]
VALID = {*keys(), *brief.ALIASES}
CONDITIONAL = """
parameters:
  model.head: {choice: [ml_decoder, gap]}
  optim.lr: {float: [3e-4, 1e-2], log: true}
  model.query_num: {query_nums: all, when: {model.head: ml_decoder}}
  train.epochs: {int: [2, 8], step: 2}
points:
  - {model.head: ml_decoder, optim.lr: 1e-3, model.query_num: 5}
  - {model.head: gap}
"""


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(text: str) -> Space:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return spaces.read(path)

    return write


def problems(space: Space, num_classes: int | None = 80) -> list[str]:
    return space.problems(num_classes, VALID, distinct_query_nums)


def asked(space: ResolvedSpace, **fixed: Any) -> dict[str, Any]:
    return space.suggest(optuna.trial.FixedTrial({key.replace("__", "."): value for key, value in fixed.items()}))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_value_of_every_shipped_space_fits_its_experiment(name: str) -> None:
    space = spaces.read(name)
    assert problems(space) == problems(space, None) == []
    searched_by = [experiment for experiment in EXPERIMENTS if experiment.sweep.space == name]
    assert searched_by
    resolved = space.resolve(80, distinct_query_nums)
    for experiment in searched_by:
        for key, value in resolved.ends():
            assert key in keys()
            with_overrides(experiment, {key: value})
        for point in resolved.points():
            with_overrides(experiment, point)


def test_a_condition_is_asked_only_where_it_holds(written: Any) -> None:
    space = written(CONDITIONAL).resolve(80, distinct_query_nums)
    with_head = {"model__head": "ml_decoder", "optim__lr": 1e-3, "model__query_num": 27, "train__epochs": 4}
    assert asked(space, **with_head)["model.query_num"] == 27
    without = asked(space, model__head="gap", optim__lr=1e-3, train__epochs=4)
    assert without == {"model.head": "gap", "optim.lr": 1e-3, "train.epochs": 4}


def test_a_study_asks_the_points_first_and_then_stays_inside(written: Any) -> None:
    space = written(CONDITIONAL).resolve(10, distinct_query_nums)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for point in space.points():
        study.enqueue_trial(point)
    drawn = [space.suggest(study.ask()) for _ in range(40)]
    assert drawn[0].items() >= {"model.head": "ml_decoder", "optim.lr": 1e-3, "model.query_num": 5}.items()
    assert drawn[1]["model.head"] == "gap"
    for values in drawn:
        assert ("model.query_num" in values) == (values["model.head"] == "ml_decoder")
        assert values.get("model.query_num", 1) in (1, 2, 3, 4, 5, 10)
        assert 3e-4 <= values["optim.lr"] <= 1e-2
        assert values["train.epochs"] in (2, 4, 6, 8)


def test_a_chain_of_conditions_stops_at_the_first_that_fails() -> None:
    parameters = [
        spaces.Parameter("a", spaces.distributions.Choice((1, 2))),
        spaces.Parameter("b", spaces.distributions.Choice((1, 2)), (("a", (1,)),)),
        spaces.Parameter("c", spaces.distributions.Choice((1, 2)), (("b", (1, 2)),)),
    ]
    space = ResolvedSpace(tuple(parameters))
    assert asked(space, a=2) == {"a": 2}
    assert asked(space, a=1, b=2, c=1) == {"a": 1, "b": 2, "c": 1}


def test_query_nums_are_the_distinct_sizes(written: Any) -> None:
    sizes = written(CONDITIONAL).resolve(80, distinct_query_nums).parameters[2].distribution
    assert sizes.ends() == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 27, 40, 80)
    listed = written("parameters: {model.query_num: {query_nums: [20, 60, 81]}}")
    [problem] = problems(listed)
    assert "got 60, 81" in problem
    assert "20, 27, 40, 80" in problem
    assert problems(listed, None) == []
    with pytest.raises(SpaceError, match="got 60, 81"):
        listed.resolve(80, distinct_query_nums)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("parameters: {optim.rl: {choice: [1]}}", "optim.rl: must be an override key. Nearest: optim.lr"),
        ("parameters: {optim.lr: {float: [2, 1]}}", "low <= high must hold for finite bounds"),
        ("parameters: {optim.lr: {float: [1, inf]}}", "finite bounds"),
        ("parameters: {optim.lr: {float: [nan, 1]}}", "finite bounds"),
        ("parameters: {optim.lr: {float: [0, 1], log: true}}", "log needs low > 0, but got low=0.0"),
        ("parameters: {train.epochs: {int: [1, 8], step: 2}}", "step >= 1 must divide"),
        ("parameters: {train.epochs: {int: [1, 8], step: 0}}", "step >= 1 must divide"),
        ("parameters: {train.epochs: {int: [2, 8], step: 2, log: true}}", "log needs step=1"),
        ("parameters: {model.head: {choice: []}}", "at least one value"),
        ("parameters: {model.head: {choice: [gap, gap]}}", "must be distinct"),
        ("parameters: {model.query_num: {query_nums: []}}", "at least one value"),
        ("parameters: {optim.lr: {choice: [1], when: {model.head: gap}}}", "must name an earlier parameter"),
        (
            "parameters: {model.head: {choice: [gap]}, optim.lr: {choice: [1], when: {model.head: [gap, gip]}}}",
            "when model.head=gip can never hold",
        ),
        (
            "parameters: {optim.lr: {choice: [1]}}\npoints: [{optim.rl: 1}]",
            "point 1: optim.rl must be a parameter",
        ),
        (
            "parameters: {optim.lr: {float: [1, 2]}}\npoints: [{}, {optim.lr: 3}]",
            "point 2: optim.lr must lie in",
        ),
        ("parameters: {train.epochs: {int: [1, 5], step: 2}}\npoints: [{train.epochs: 2}]", "must lie in"),
        ("parameters: {model.query_num: {query_nums: all}}\npoints: [{model.query_num: 60}]", "must lie in"),
        (
            "parameters: {model.head: {choice: [gap, ml_decoder]}, "
            "model.query_num: {query_nums: all, when: {model.head: ml_decoder}}}\n"
            "points: [{model.head: gap, model.query_num: 5}]",
            "would be ignored, where model.head=gap",
        ),
    ],
)
def test_what_cannot_be_searched(written: Any, text: str, fragment: str) -> None:
    [problem] = problems(written(text))
    assert problem.startswith("space mine: ")
    assert fragment in problem


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("", "at least one override key"),
        ("parameters: []", "at least one override key"),
        ("parameter: {a: {choice: [1]}}\nparameters: {a: {choice: [1]}}", "but got 'parameter'"),
        ("parameters: {a: 3}", "one of choice, float, int, query_nums"),
        ("parameters: {a: {choice: [1], float: [1, 2]}}", "one of choice, float, int, query_nums"),
        ("parameters: {a: {float: [1, 2], step: 1}}", "float goes only with log, when, but got step"),
        ("parameters: {a: {float: [1, 2, 3]}}", "[low, high]"),
        ("parameters: {a: {float: [1, b]}}", "[low, high]"),
        ("parameters: {a: {float: 1}}", "followed by a list"),
        ("parameters: {a: {float: [1, 2], log: maybe}}", "log must be true or false"),
        ("parameters: {a: {int: [1.5, 2]}}", "whole numbers"),
        ("parameters: {a: {int: [1, 2], step: x}}", "whole numbers"),
        ("parameters: {a: {query_nums: [x]}}", "whole numbers"),
        ("parameters: {a: {choice: [{b: 1}]}}", "list of plain values"),
        ("parameters: {a: {choice: [1], when: b}}", "when must map"),
        ("parameters: {a: {choice: [1], when: {b: []}}}", "when must map"),
        ("parameters: {a: {choice: [1]}}\npoints: {a: 1}", "`points` must be a list"),
        ("parameters: {a: {choice: [1]}}\npoints: [{a: {b: 1}}]", "`points` must be a list"),
        ("parameters: {a: {choice: [1]}, a: {choice: [2]}}", "given twice"),
    ],
)
def test_what_is_no_space(written: Any, text: str, fragment: str) -> None:
    with pytest.raises(SpaceError) as caught:
        written(text)
    [problem] = caught.value.problems
    assert fragment in problem


def test_problems_are_collected(written: Any) -> None:
    with pytest.raises(SpaceError) as caught:
        written("extra: 1\nparameters: {a: 3, b: {choice: 4}}\npoints: 5")
    assert len(caught.value.problems) == 4
    found = problems(written("parameters: {a: {choice: []}, b: {float: [0, -1], log: true}}\npoints: [{c: 1}]"))
    assert len(found) == 6


def test_an_unknown_space_names_the_nearest() -> None:
    with pytest.raises(SpaceError, match=r"no space named 'cocoo'. Did you mean coco\?"):
        spaces.read("cocoo")


def test_plain_values_keep_their_type(written: Any) -> None:
    space = written("parameters: {a: {choice: [1, 2.5, 3e-4, true, null, on, lcnet_050]}}")
    assert space.parameters[0].distribution.ends() == (1, 2.5, 3e-4, True, None, "on", "lcnet_050")


def test_the_digest_follows_the_content(written: Any) -> None:
    def digest(text: str, num_classes: int = 80) -> str:
        return str(written(text).resolve(num_classes, distinct_query_nums).digest)

    same = [CONDITIONAL, CONDITIONAL + "# a comment\n", CONDITIONAL.replace("3e-4", "0.0003")]
    others = [
        CONDITIONAL.replace("3e-4", "4e-4"),
        CONDITIONAL.replace("log: true", "log: false"),
        CONDITIONAL.replace("[ml_decoder, gap]", "[gap, ml_decoder]"),
        CONDITIONAL.replace(", when: {model.head: ml_decoder}", ""),
        CONDITIONAL.replace("model.query_num: 5", "model.query_num: 4"),
    ]
    assert len({digest(text) for text in same}) == 1
    assert len({digest(text) for text in [CONDITIONAL, *others]}) == 6
    assert digest(CONDITIONAL, 80) != digest(CONDITIONAL, 10)


def test_spaces_are_frozen_hashable_and_survive_pickling(written: Any) -> None:
    resolved = written(CONDITIONAL).resolve(80, distinct_query_nums)
    copy = pickle.loads(pickle.dumps(resolved))
    assert copy == resolved
    assert hash(copy) == hash(resolved)
    assert replace(resolved, first=()).digest != resolved.digest
    resolved.points()[0]["model.head"] = "gap"  # a copy
    assert copy == resolved
