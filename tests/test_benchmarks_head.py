"""The benchmarks of the head and of the training step, on tiny sizes: equal work, tables, exit codes. No times."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.benchmarks import head, head_table, rounds, timm_head, train_step
from tests.benchmarks.head_table import BOTH, COMPILED, FIXED, FORWARD, GROUP, OURS, TIMM, Row
from tests.benchmarks.train_step import POOLING, Result
from trainables.ml_decoder import MLDecoder

torch.set_num_threads(1)

CPU = torch.device("cpu")
TINY = ["--batch", "2", "--in-features", "12", "--embed-dim", "16", "--rounds", "1", "--seconds", "0", "--no-compile"]


def ours(num_classes: int, query_num: int) -> MLDecoder:
    torch.manual_seed(0)
    return MLDecoder(num_classes, query_num=query_num, in_features=12, embed_dim=16).eval()


@pytest.mark.parametrize("kind", [timm_head.TimmHead, timm_head.PullRequestHead])
@pytest.mark.parametrize("shape", [(3, 12, 2, 2), (3, 5, 12)])
def test_the_peers_are_our_head_with_the_same_weights(kind: type[timm_head.TimmHead], shape: tuple[int, ...]) -> None:
    mine, features = ours(10, 4), torch.randn(shape)
    theirs = timm_head.from_ours(mine, kind)
    assert not theirs.training and timm_head.from_ours(mine.train(), kind).training
    torch.testing.assert_close(theirs(features), mine.eval()(features), atol=1e-5, rtol=1e-5)


def test_the_loop_alone_is_the_last_step_of_timms_head() -> None:
    mine, decoded = ours(10, 4), torch.randn(3, 4, 16)
    last_step = timm_head.loop_alone(timm_head.from_ours(mine), decoded.transpose(0, 1))
    logits = last_step(timm_head.nothing(decoded.transpose(0, 1)))
    torch.testing.assert_close(logits, mine._group_projection(decoded), atol=1e-5, rtol=1e-5)


class _Scaled(nn.Module):
    def __init__(self, head: nn.Module, factor: float) -> None:
        super().__init__()
        self.head, self.factor = head, factor

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.head(features) * self.factor


class _Broken(nn.Module):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no compiler\nat all")


def test_a_side_that_computes_something_else_is_refused() -> None:
    mine, features = ours(10, 4), torch.randn(2, 12, 2, 2)
    heads: dict[str, nn.Module] = {OURS: mine, TIMM: timm_head.from_ours(mine)}
    assert head.agree(heads, features) == {}
    with pytest.raises(head.UnequalHeadsError, match=r"logits of timm #2045 must equal"):
        head.agree({**heads, FIXED: _Scaled(mine, 1.001)}, features)


def test_a_compiled_side_that_cannot_run_is_left_out_with_its_reason() -> None:
    mine, features = ours(10, 4), torch.randn(2, 12, 2, 2)
    heads: dict[str, nn.Module] = {OURS: mine, TIMM: timm_head.from_ours(mine)}
    assert head.agree({**heads, COMPILED: _Broken()}, features) == {COMPILED: "RuntimeError: no compiler"}
    with pytest.raises(RuntimeError, match="no compiler"):
        head.agree({**heads, FIXED: _Broken()}, features)


def test_the_steps_give_gradients_of_the_features_and_of_all_weights() -> None:
    mine, setting = ours(10, 4).train(), head.Setting(CPU, in_features=12, embed_dim=16, batch=2)
    features = setting.features(2)
    head.forward_and_backward(mine, features, setting)()
    assert all(parameter.grad is not None for parameter in mine.parameters())
    mine.zero_grad()
    for run in head.group_projections(mine, head.Case(10, 4, 2), setting).values():
        run()
    assert [name for name, parameter in mine.named_parameters() if parameter.grad is not None] == [
        "group_weight",
        "group_bias",
    ]


@pytest.mark.parametrize("factor, code", [(0.0, 0), (1e9, 1)])
def test_the_exit_code_says_whether_the_targets_are_met(
    factor: float, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    targets = {mode: factor for mode in (FORWARD, BOTH, GROUP)}
    monkeypatch.setattr(head_table, "TARGETS", {"cpu": targets})
    monkeypatch.setattr(head_table, "NEVER_SLOWER", 0.0)
    assert head.main([*TINY, "--cases", "6,3,2", "5,5,1", "--json", str(tmp_path / "head.json")]) == code
    printed = capsys.readouterr().out
    assert printed.count("6 classes, 3 queries, 2x2") == printed.count("5 classes, 5 queries, 1x1") == 3
    assert printed.count("missed" if code else ": met") == 3
    assert (tmp_path / "head.json").stat().st_size > 0


def rows() -> list[Row]:
    theirs = {"a": 0.3, "b": 0.12}
    return [
        Row(mode, case, {OURS: [0.2, 0.1, 0.1], TIMM: [seconds, seconds, 9.0]}, {COMPILED: "no compiler"}, 0.02)
        for mode in (FORWARD, BOTH)
        for case, seconds in theirs.items()
    ]


def test_the_verdict_is_the_geometric_mean_and_the_lowest_ratio() -> None:
    forward, _ = head_table.verdicts(rows(), "cpu")
    assert (forward.mean, forward.lowest, forward.met) == (pytest.approx((3.0 * 1.2) ** 0.5), pytest.approx(1.2), True)
    slower = [Row(FORWARD, "c", {OURS: [1.0], TIMM: [0.9]}, {}, None)]
    [verdict] = head_table.verdicts([*rows()[:1], *slower], "cpu")
    assert verdict.mean > verdict.target and not verdict.met


def test_the_table_of_the_heads() -> None:
    text = head_table.table(rows()[:2], head_table.verdicts(rows()[:2], "cpu"), "batch 2, 3 rounds", "some CPU")
    assert text.splitlines() == [
        "batch 2, 3 rounds",
        "",
        "forward, ms                                       ours                timm       timm compiled",
        "a                                       100.00 (3.00x)      300.00 (1.00x)             not run",
        "b                                       100.00 (1.20x)      120.00 (1.00x)             not run",
        "timm / ours: geometric mean 1.90 (target: at least 1.2), lowest 1.20 (target: at least 1): met",
        "",
        "timm compiled was not run: no compiler",
        "other processes used up to 2 % of the machine meanwhile",
        "some CPU",
    ]


def test_rounds_take_turns_and_every_side_leads_once() -> None:
    order: list[str] = []
    sides = {name: lambda name=name: order.append(name) for name in "abc"}
    measured = rounds.measure(sides, rounds=3, device=CPU, warmup=1)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(times) for name, times in measured.times.items()} == {"a": 3, "b": 3, "c": 3}
    order.clear()
    rounds.measure(sides, rounds=1, device=CPU, warmup=0, least_s=0.05)
    assert len(order) > 30


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    assert rounds.ratio({"a": [1.0, 20.0, 3.0], "b": [2.0, 10.0, 2.0]}, "a", "b") == 1.5


def test_the_sides_of_the_training_step_share_a_head_and_train_all_of_it() -> None:
    setting = train_step.Setting(CPU, "fp32", rounds=1, backbone="resnet10t", num_classes=5)
    models = train_step.build_models(setting)
    assert set(models) == {train_step.OURS, train_step.TIMM, train_step.FIXED, POOLING}
    assert torch.equal(models[train_step.TIMM].fc.duplicate_pooling, models[train_step.OURS].head.group_weight)
    for model in models.values():
        train_step.step_of(model, model, torch.randn(2, 3, 32, 32), setting)()
        assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def results(ours_s: float) -> list[Result]:
    times = {train_step.OURS: [ours_s], train_step.TIMM: [2.0], POOLING: [0.8]}
    return [Result(224, 8, train_step.EAGER, times, {train_step.FIXED: "no memory"}, None)]


def test_the_table_of_the_training_step_and_what_was_missed() -> None:
    assert train_step.missed(results(0.9)) == []
    assert train_step.missed(results(1.0)) == ["224 px, eager: 0.800 of the pooling model, the target is 0.85"]
    assert train_step.table(results(1.0), "a step", "some GPU").splitlines() == [
        "a step",
        "images per second                           ours         timm's head       timm's, #2045             pooling",
        "224 px, batch 8, eager               8.0 (0.800)         4.0 (0.400)             not run        10.0 (1.000)",
        "timm's, #2045, 224 px, eager, was not run: no memory",
        "some GPU",
    ]


def test_on_a_cpu_the_training_step_has_no_target(capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["--device", "cpu", "--sizes", "32", "--batches", "2", "--rounds", "1", "--backbone", "resnet10t"]
    assert train_step.main(tiny) == 0
    assert "32 px, batch 2, eager" in capsys.readouterr().out
