"""The study, without Ray: what is decided, and what a reopened journal remembers."""

import json
from pathlib import Path

import pytest

from orchestrator.config import overrides
from orchestrator.config.experiment import Experiment
from orchestrator.search.study import SweepStudy, drop_torn_line
from search_spaces import space as spaces
from search_spaces.space import ResolvedSpace
from trainables.groups import distinct_query_nums


@pytest.fixture
def experiment() -> Experiment:
    return overrides.load("digits", ["train.epochs=4", "sweep.startup_trials=2"])


@pytest.fixture
def space(tmp_path: Path) -> ResolvedSpace:
    file = tmp_path / "space.yaml"
    file.write_text(
        "parameters:\n"
        "  model.head: {choice: [ml_decoder, gap]}\n"
        "  optim.lr: {float: [1e-4, 1e-2], log: true}\n"
        "  model.query_num: {query_nums: all, when: {model.head: ml_decoder}}\n"
        "points:\n  - {model.head: gap, optim.lr: 1e-3}\n"
    )
    return spaces.read(file).resolve(10, distinct_query_nums)


def metrics(epoch: int, value: float) -> dict:
    return {"epoch": epoch, "mAP": value, "best_mAP": value, "seconds": float(epoch)}


def ask(study: SweepStudy) -> int:
    record = study.next_trial()
    assert record is not None
    return record.number


def test_points_come_first_and_the_number_of_trials_is_exact(
    tmp_path: Path, experiment: Experiment, space: ResolvedSpace
) -> None:
    study = SweepStudy(tmp_path / "journal", experiment, space, 3)
    first = study.next_trial()
    assert first is not None and first.overrides["model.head"] == "gap" and first.overrides["optim.lr"] == 1e-3
    assert first.overrides["model.backbone"] == experiment.model.backbone  # a row always names it
    assert [ask(study), ask(study)] == [1, 2]
    assert study.next_trial() is None


def test_states_are_told_as_they_ended(tmp_path: Path, experiment: Experiment, space: ResolvedSpace) -> None:
    experiment = experiment.model_copy(
        update={
            "sweep": experiment.sweep.model_copy(
                update={"pruner": experiment.sweep.pruner.model_copy(update={"group_by": ()})}
            )
        }
    )
    study = SweepStudy(tmp_path / "journal", experiment, space, 4)
    for number in range(4):
        assert ask(study) == number
    assert not study.report(0, metrics(1, 0.5))
    assert study.report(1, metrics(1, 0.4))  # pruned at its first rung
    study.fail(2, "out of memory")
    for epoch in (2, 3, 4):
        assert not study.report(0, metrics(epoch, 0.5 + epoch / 100))
    states = {record.number: (record.state, record.epochs, record.score) for record in study.records()}
    assert states == {0: ("complete", 4, 0.54), 1: ("pruned", 1, 0.4), 2: ("failed", 0, None), 3: ("running", 0, None)}
    assert [record.number for record in study.leaderboard()] == [0, 1, 3, 2]
    study.fail(0, "too late")
    assert study.records()[0].state == "complete"


def test_a_reopened_study_goes_on_where_it_was(tmp_path: Path, experiment: Experiment, space: ResolvedSpace) -> None:
    journal = tmp_path / "journal"
    study = SweepStudy(journal, experiment, space, 4)
    numbers = [ask(study) for _ in range(3)]
    study.report(numbers[0], metrics(1, 0.6))
    before = study.records()

    reopened = SweepStudy(journal, experiment, space, 4)
    assert reopened.records() == before
    assert reopened.resumed == (0, 1, 2)
    again = [reopened.next_trial() for _ in range(4)]
    assert [record.number for record in again if record] == [0, 1, 2, 3]
    assert [record.overrides for record in again[:3] if record] == [record.overrides for record in before]
    assert reopened.next_trial() is None


def test_suggestions_do_not_depend_on_restarts(tmp_path: Path, experiment: Experiment, space: ResolvedSpace) -> None:
    def run(journal: Path, *, restart: bool) -> list[dict]:
        study, seen = SweepStudy(journal, experiment, space, 8), []
        for number in range(8):
            if restart:
                study = SweepStudy(journal, experiment, space, 8)
            record = study.next_trial()
            assert record is not None and record.number == number
            seen.append(record.overrides)
            for epoch in range(1, 5):
                if study.report(number, metrics(epoch, 0.1 * number + 0.01 * epoch)):
                    break
        return seen

    undisturbed = run(tmp_path / "a", restart=False)
    assert run(tmp_path / "b", restart=True) == undisturbed
    assert len({json.dumps(overrides, sort_keys=True) for overrides in undisturbed}) == 8  # no repeats after restart


def test_a_repeated_report_changes_nothing(tmp_path: Path, experiment: Experiment, space: ResolvedSpace) -> None:
    study = SweepStudy(tmp_path / "journal", experiment, space, 2)
    number = ask(study)
    study.report(number, metrics(1, 0.6))
    before = study.records()
    study.report(number, metrics(1, 0.9))
    assert study.records() == before


def test_rungs_count_after_a_restart(tmp_path: Path, experiment: Experiment, space: ResolvedSpace) -> None:
    """Ray's own scheduler forgets its rungs here and lets the worse trial go on."""
    journal = tmp_path / "journal"
    study = SweepStudy(journal, experiment, space, 12)
    heads = {}
    while set(heads) != {"gap"} or len(heads["gap"]) < 2:
        record = study.next_trial()
        assert record is not None
        heads.setdefault(record.overrides["model.head"], []).append(record.number)
        if record.overrides["model.head"] != "gap":
            heads.pop(record.overrides["model.head"])
    good, bad = heads["gap"][:2]
    assert not study.report(good, metrics(1, 0.6))
    assert SweepStudy(journal, experiment, space, 12).report(bad, metrics(1, 0.5))


@pytest.mark.parametrize(("epoch", "value", "state"), [(1, 0.5, "pruned"), (4, 0.5, "complete")])
def test_a_verdict_that_a_kill_cut_off_is_given_on_reopening(
    tmp_path: Path,
    experiment: Experiment,
    space: ResolvedSpace,
    monkeypatch: pytest.MonkeyPatch,
    epoch: int,
    value: float,
    state: str,
) -> None:
    journal = tmp_path / "journal"
    study = SweepStudy(journal, experiment, ResolvedSpace(()), 2)
    first, second = ask(study), ask(study)
    study.report(first, metrics(1, 0.6))
    with monkeypatch.context() as patch:  # the driver dies between the report and the verdict
        patch.setattr(study, "_decide", lambda number, epoch: False)
        study.report(second, metrics(epoch, value))
    assert study.records()[second].state == "running"
    reopened = SweepStudy(journal, experiment, ResolvedSpace(()), 2)
    assert reopened.records()[second].state == state
    assert reopened.resumed == (first,)


def test_a_torn_last_line_is_cut(tmp_path: Path, experiment: Experiment, space: ResolvedSpace) -> None:
    journal = tmp_path / "journal"
    study = SweepStudy(journal, experiment, space, 2)
    number = ask(study)
    whole = journal.read_bytes()
    study.report(number, metrics(1, 0.6))
    for size in (len(whole) + 1, len(journal.read_bytes()) - 3):
        journal.write_bytes(journal.read_bytes()[:size])
        reopened = SweepStudy(journal, experiment, space, 2)
        reopened.report(number, metrics(1, 0.6))
        assert SweepStudy(journal, experiment, space, 2).records()[0].epochs == 1
        journal.write_bytes(journal.read_bytes())
    drop_torn_line(tmp_path / "absent")


def test_pruning_races_within_a_head(tmp_path: Path, experiment: Experiment, space: ResolvedSpace) -> None:
    study = SweepStudy(tmp_path / "journal", experiment, space, 12)
    by_head: dict[str, int] = {}
    while len(by_head) < 2:
        record = study.next_trial()
        assert record is not None
        by_head.setdefault(record.overrides["model.head"], record.number)
    assert not study.report(by_head["gap"], metrics(1, 0.8))
    assert not study.report(by_head["ml_decoder"], metrics(1, 0.3))


def test_points_survive_a_driver_that_dies_while_it_enqueues_them(
    tmp_path: Path, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = spaces.read("digits").resolve(10, distinct_query_nums)
    with monkeypatch.context() as patch:
        patch.setattr(ResolvedSpace, "points", lambda self: [dict(self.first[0])])  # it got no further
        SweepStudy(tmp_path / "journal", experiment, digits, 4)
    study = SweepStudy(tmp_path / "journal", experiment, digits, 4)
    asked = [study.next_trial() for _ in range(4)]
    for record, point in zip(asked, digits.points(), strict=True):
        assert record is not None and point.items() <= record.overrides.items()
