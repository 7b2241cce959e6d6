"""Our head beside timm's, with the same weights, in the same run.

    python -m tests.benchmarks.head [--device cpu] [--threads 2] [--rounds 15] [--precision fp32] [--json FILE]

Sides: ours; timm's, made to run on today's torch (`timm_head`); what timm's pull request 2045 computes; timm's under
torch.compile, and ours. `forward` is evaluation without gradients. `forward + backward` is training, dropout included,
with gradients of the weights and of the features. `group projection` is the last step alone: from decoded queries to
logits and back, where timm loops over the queries. Before the clock starts, all sides must agree in evaluation.

Ends with 1 if a target is missed. What is judged is timm's time over ours, the median over rounds: its geometric mean
over the cases, and in each case that ours is not slower.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.benchmarks import timm_head
from tests.benchmarks.head_table import BOTH, COMPILED, FIXED, FORWARD, GROUP, OURS, OURS_COMPILED, TIMM, Row
from tests.benchmarks.head_table import table as as_table
from tests.benchmarks.head_table import verdicts as judge
from tests.benchmarks.rounds import Run, machine_line, measure, why_not
from trainables.ml_decoder import MLDecoder


class UnequalHeadsError(RuntimeError):
    """Two sides do not compute the same, so their times say nothing."""


@dataclass(frozen=True)
class Case:
    """One size of the head."""

    num_classes: int
    query_num: int
    side: int
    """Positions along a side of the feature map."""

    @property
    def name(self) -> str:
        return f"{self.num_classes} classes, {self.query_num} queries, {self.side}x{self.side}"


CASES = (Case(80, 80, 7), Case(80, 80, 14), Case(80, 20, 7), Case(1000, 100, 7))


@dataclass(frozen=True)
class Setting:
    """What is the same for all cases."""

    device: torch.device
    precision: str = "fp32"
    rounds: int = 15
    least_s: float = 0.0
    batch: int = 16
    in_features: int = 2048
    embed_dim: int = 768
    compiled: bool = True

    @property
    def repeats(self) -> int:
        return 1 if self.device.type == "cpu" else 10

    def autocast(self) -> AbstractContextManager:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def features(self, side: int) -> Tensor:
        """(B, C, H, W) as a backbone gives them: not negative, on a GPU channels last, in autocast's type."""
        features = torch.randn(self.batch, self.in_features, side, side, device=self.device).relu_()
        return features if self.device.type == "cpu" else features.contiguous(memory_format=torch.channels_last)


def measure_case(case: Case, setting: Setting) -> list[Row]:
    """A row for each mode.

    Raises:
        UnequalHeadsError: two sides disagree in evaluation.
    """
    torch.manual_seed(0)
    with setting.device:
        size = {"in_features": setting.in_features, "embed_dim": setting.embed_dim}
        ours = MLDecoder(case.num_classes, query_num=case.query_num, **size).eval()
    heads: dict[str, Any] = {
        OURS: ours,
        TIMM: timm_head.from_ours(ours),
        FIXED: timm_head.from_ours(ours, timm_head.PullRequestHead),
    }
    if setting.compiled:
        torch.compiler.reset()
        heads |= {COMPILED: torch.compile(heads[TIMM]), OURS_COMPILED: torch.compile(ours)}
    features = setting.features(case.side)
    missing = agree(heads, features)
    rows = []
    for mode, run_of in ((FORWARD, forward), (BOTH, forward_and_backward)):
        for head in heads.values():
            head.train(mode == BOTH)
        runs = {name: run_of(head, features, setting) for name, head in heads.items() if name not in missing}
        rows.append(_row(mode, case, runs, missing, setting))
    return [*rows, _row(GROUP, case, group_projections(ours, case, setting), {}, setting)]


def _row(mode: str, case: Case, runs: dict[str, Run], missing: dict[str, str], setting: Setting) -> Row:
    measured = measure(
        runs, rounds=setting.rounds, least_s=setting.least_s, device=setting.device, repeats=setting.repeats
    )
    return Row(mode, case.name, measured.times, missing, measured.others)


def agree(heads: Mapping[str, nn.Module], features: Tensor) -> dict[str, str]:
    """Compiled sides that cannot run here, each with the reason.

    Raises:
        UnequalHeadsError: logits or the features' gradient differ from timm's by more than float32's rounding,
            which may also move an activation over ReLU's kink.
    """
    expected, missing = _outcome(heads[TIMM], features), {}
    for name, head in heads.items():
        if name in (COMPILED, OURS_COMPILED):
            if reason := why_not(partial(_logits, head, features)):
                missing[name] = reason
                continue
            found = [_logits(head, features)]
        else:
            found = _outcome(head, features)
        for what, got, wanted, limit in zip(("logits", "gradient"), found, expected, (1e-5, 1e-3), strict=False):
            error = float((got - wanted).norm() / wanted.norm())
            if not error <= limit:
                raise UnequalHeadsError(f"{what} of {name} must equal those of {TIMM}, but differ by {error:.1e}")
    return missing


def _logits(head: nn.Module, features: Tensor) -> Tensor:
    with torch.inference_mode():
        return head(features)


def _outcome(head: nn.Module, features: Tensor) -> list[Tensor]:
    """Logits and the features' gradient; of a compiled side the logits must do, since each more is a graph more."""
    features = features.detach().requires_grad_()
    logits = head(features)
    return [logits.detach(), *torch.autograd.grad(logits.square().sum(), features)]


def forward(head: nn.Module, features: Tensor, setting: Setting) -> Run:
    """Evaluation of one batch."""

    def run() -> None:
        with torch.inference_mode(), setting.autocast():
            head(given)

    given = _in_precision(features, setting)
    return run


def forward_and_backward(head: nn.Module, features: Tensor, setting: Setting) -> Run:
    """A training step of the head without its optimizer, as far as the gradient of the features."""
    given = _in_precision(features, setting).requires_grad_()
    return _with_backward(lambda: head(given), [given, *head.parameters()], setting)


def _with_backward(compute: Callable[[], Tensor], leaves: Sequence[Tensor], setting: Setting) -> Run:
    def run() -> None:
        for leaf in leaves:
            leaf.grad = None
        with setting.autocast():
            logits = compute()
        logits.backward(cotangents.setdefault(logits.dtype, torch.ones_like(logits)))

    cotangents: dict[torch.dtype, Tensor] = {}
    return run


def _in_precision(features: Tensor, setting: Setting) -> Tensor:
    return features.detach().to(torch.float32 if setting.precision == "fp32" else torch.bfloat16, copy=True)


def group_projections(ours: MLDecoder, case: Case, setting: Setting) -> dict[str, Run]:
    """Both ways from decoded queries, which lie as each decoder leaves them: (B, Q, D) ours, (Q, B, D) timm's."""
    shape = (setting.batch, case.query_num, setting.embed_dim)
    decoded_BQD = torch.randn(shape, device=setting.device, requires_grad=True)
    decoded_QBD = decoded_BQD.detach().transpose(0, 1).contiguous().requires_grad_()
    loop = timm_head.loop_alone(timm_head.from_ours(ours), decoded_QBD)
    weights, theirs = [ours.group_weight, ours.group_bias], [loop.duplicate_pooling, loop.duplicate_pooling_bias]
    nothing = timm_head.nothing(decoded_QBD)
    return {
        OURS: _with_backward(lambda: ours._group_projection(decoded_BQD), [decoded_BQD, *weights], setting),
        TIMM: _with_backward(lambda: loop(nothing), [decoded_QBD, *theirs], setting),
    }


def _case(text: str) -> Case:
    num_classes, query_num, side = (int(number) for number in text.split(","))
    return Case(num_classes, query_num, side)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.head", description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16: autocast, weights float32")
    parser.add_argument("--threads", type=int, help="of PyTorch; default: its own choice, one per core")
    parser.add_argument("--rounds", type=int, default=15, help="at least so many, of each case in each mode")
    parser.add_argument("--seconds", type=float, default=10.0, help="at least so long")
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled sides")
    parser.add_argument("--cases", type=_case, nargs="+", default=CASES, metavar="CLASSES,QUERIES,SIDE")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--in-features", type=int, default=2048)
    parser.add_argument("--embed-dim", type=int, default=768)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    setting = Setting(
        device=arguments.device,
        precision=arguments.precision,
        rounds=arguments.rounds,
        least_s=arguments.seconds,
        batch=arguments.batch,
        in_features=arguments.in_features,
        embed_dim=arguments.embed_dim,
        compiled=not arguments.no_compile,
    )
    rows = []
    for case in arguments.cases:
        rows += measure_case(case, setting)
        print(f"measured: {case.name}", file=sys.stderr, flush=True)
    verdicts = judge(rows, setting.device.type)
    machine = machine_line(setting.device)
    what = f"batch {setting.batch}, {setting.in_features} features, width {setting.embed_dim}, {setting.precision}"
    print(as_table(rows, verdicts, f"{what}, {setting.rounds} rounds or more", machine))
    if arguments.json:
        content = {"machine": machine, "what": what, "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    return int(not all(verdict.met for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
