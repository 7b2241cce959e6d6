import itertools

from orchestrator.config.experiment import PrunerConfig
from orchestrator.search.pruner import Report, rungs, should_prune

CONFIG = PrunerConfig(grace=1, reduction=3)


def reports(values: list[float], *, epoch: int = 1, group: str = "gap") -> list[Report]:
    return [Report(order, order, group, epoch, value) for order, value in enumerate(values)]


def test_rungs_lie_below_the_last_epoch() -> None:
    assert rungs(CONFIG, 9) == [1, 3]
    assert rungs(CONFIG, 10) == [1, 3, 9]
    assert rungs(PrunerConfig(grace=4, reduction=2), 40) == [4, 8, 16, 32]
    assert rungs(PrunerConfig(name="none"), 40) == []


def test_the_first_at_a_rung_goes_on_and_a_worse_second_stops() -> None:
    first, second = history = reports([0.5, 0.4])
    assert not should_prune(CONFIG, 9, history, first)
    assert should_prune(CONFIG, 9, history, second)


def test_one_in_three_goes_on() -> None:
    history = reports([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert [should_prune(CONFIG, 9, history, r) for r in history] == [False] * 6  # each was the best by then
    late = Report(6, 6, "gap", 1, 0.55)
    assert not should_prune(CONFIG, 9, [*history, late], late)  # second of seven, two go on
    late = Report(6, 6, "gap", 1, 0.45)
    assert should_prune(CONFIG, 9, [*history, late], late)


def test_groups_race_among_themselves() -> None:
    decoder = Report(9, 9, "ml_decoder", 1, 0.2)
    assert not should_prune(CONFIG, 9, [*reports([0.5, 0.6]), decoder], decoder)
    assert should_prune(CONFIG, 9, [*reports([0.5, 0.6], group="ml_decoder"), decoder], decoder)


def test_between_rungs_and_at_the_end_nothing_stops() -> None:
    worst = Report(5, 5, "gap", 2, 0.0)
    assert not should_prune(CONFIG, 9, [*reports([0.5, 0.6], epoch=2), worst], worst)
    last = Report(5, 5, "gap", 9, 0.0)
    assert not should_prune(CONFIG, 9, [*reports([0.5, 0.6], epoch=9), last], last)


def test_the_verdict_depends_only_on_what_was_recorded_before() -> None:
    history = reports([0.3, 0.6, 0.1, 0.5, 0.2, 0.4])
    at_the_time = [should_prune(CONFIG, 9, history[: n + 1], report) for n, report in enumerate(history)]
    for permuted in itertools.islice(itertools.permutations(history), 50):
        assert [should_prune(CONFIG, 9, permuted, report) for report in history] == at_the_time


def test_the_best_of_a_group_is_never_stopped() -> None:
    for values in itertools.permutations([0.1, 0.2, 0.3, 0.4]):
        history = reports(list(values))
        best = max(history, key=lambda report: report.value)
        assert not should_prune(CONFIG, 9, history, best)
