"""The pure half of the benchmark: equal work, scaling, ratios and the table. Nothing is trained here."""

from __future__ import annotations

from typing import Any

import pytest

from search_spaces import space as spaces
from tests.benchmarks import cost_table, sweep_cost
from tests.benchmarks.cost_table import OURS, STOCK, Measured, UnequalWorkError, plain_name
from trainables.groups import distinct_query_nums

MACHINE = {"cpu": "some CPU", "cores": 2, "versions": {"python": "3.11", "ray": "2.60"}, "date": "2026-01-31"}


def trial(lr: float, epochs: int = 2, num_evaluated: int = 7) -> dict[str, Any]:
    reports = [{"epoch": n, "mAP": n / 10, "num_evaluated": num_evaluated} for n in range(1, epochs + 1)]
    return {"overrides": {"optim.lr": lr, "model.head": "gap"}, "epochs": reports}


def check(trained: list[dict[str, Any]]) -> dict[str, list[float]]:
    wanted = [{"model.head": "gap", "optim.lr": lr} for lr in (0.1, 0.2)]
    return cost_table.checked(trained, wanted, epochs=2, val_images=7)


def rounds() -> list[dict[str, Measured]]:
    walls = {OURS: (8, 10, 9), plain_name(2): (10, 20, 12), plain_name(1): (11, 11, 30), STOCK: (40, 90, 60)}
    curves = {OURS: 0.5, plain_name(2): 0.51, plain_name(1): 0.5, STOCK: 0.6}
    return [
        {side: Measured(float(values[n]), {"a": [0.1, curves[side]]}, 0.01 * n) for side, values in walls.items()}
        for n in range(3)
    ]


def test_start_and_end_are_counted_once() -> None:
    assert cost_table.scaled(100.0, 80.0, done=4, wanted=24) == 20.0 + 480.0
    assert cost_table.scaled(100.0, 80.0, done=4, wanted=4) == 100.0


def test_equal_work_passes_in_any_order() -> None:
    assert check([trial(0.2), trial(0.1)]) == {
        "model.head=gap optim.lr=0.2": [0.1, 0.2],
        "model.head=gap optim.lr=0.1": [0.1, 0.2],
    }


@pytest.mark.parametrize(
    ("trained", "said"),
    [
        ([trial(0.1)], "differ"),
        ([trial(0.1), trial(0.3)], "differ"),
        ([trial(0.1), trial(0.1)], "twice"),
        ([trial(0.1), trial(0.2, epochs=1)], "epochs 1 to 2"),
        ([trial(0.1), trial(0.2, num_evaluated=6)], "7 images"),
    ],
)
def test_doing_less_is_no_way_to_win(trained: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(UnequalWorkError, match=said):
        check(trained)


def test_the_peer_is_the_plain_loop_at_its_best() -> None:
    found = cost_table.summary(rounds(), 4)
    assert found["peer"] == plain_name(1)  # median 11 against 12
    assert found["ratios"][plain_name(1)]["median"] == pytest.approx(9 / 11)
    assert found["ratios"][plain_name(1)]["rounds"] == pytest.approx([8 / 11, 10 / 11, 9 / 30])
    assert found["ratios"][STOCK]["median"] == pytest.approx(9 / 60)
    assert found["largest_difference_of_mAP"] == pytest.approx({plain_name(2): 0.01, plain_name(1): 0.0, STOCK: 0.1})
    assert found["others"] == pytest.approx(0.02)


def test_the_table() -> None:
    threads = {OURS: "2 trials x 1", plain_name(2): "1 trial x 2", plain_name(1): "1 trial x 1", STOCK: "1 trial x 1"}
    text = cost_table.table(cost_table.summary(rounds(), 4), threads, "tiny scenes", MACHINE, 1)
    assert text.splitlines() == [
        "a sweep of 4 trials, nothing pruned: tiny scenes",
        "side                                    threads   wall s: median (min - max)  s per trial",
        "ours                               2 trials x 1             9.0 (8.0 - 10.0)         2.25",
        "plain loop, 2 threads               1 trial x 2           12.0 (10.0 - 20.0)         3.00",
        "plain loop, 1 thread                1 trial x 1           11.0 (11.0 - 30.0)         2.75",
        "stock recipe (1 of them, scaled)    1 trial x 1           60.0 (40.0 - 90.0)        15.00",
        "ours / plain loop, 1 thread: 0.82 (rounds 0.30 - 0.91); the target is at most 1: met",
        "ours / stock recipe: 0.15 (rounds 0.11 - 0.20); the target is at most 0.2: met",
        "largest difference of an epoch's mAP, ours and plain loop, 2 threads: 1.0e-02 (rounding differs)",
        "largest difference of an epoch's mAP, ours and plain loop, 1 thread: 0.0e+00 (equal)",
        "largest difference of an epoch's mAP, ours and stock recipe: 1.0e-01 (batches are drawn otherwise)",
        "other processes used up to 2 % of the machine meanwhile",
        "some CPU, 2 cores; python 3.11, ray 2.60; 2026-01-31",
    ]


@pytest.mark.parametrize("num_trials", [1, 2, 24])
def test_the_configurations_are_distinct_and_lie_in_the_space(num_trials: int, tmp_path: Any) -> None:
    found = sweep_cost.configurations(num_trials)
    assert len({cost_table.identity(overrides) for overrides in found}) == num_trials
    sweep_cost.write_space(tmp_path / "space.yaml", num_trials)
    resolved = spaces.read(tmp_path / "space.yaml").resolve(10, distinct_query_nums)
    assert resolved.points() == found
    # Every parameter that is asked is given, so that nothing is left to a sampler.
    for point in resolved.points():
        assert point.keys() == {p.key for p in resolved.parameters if p.is_asked(point)}
