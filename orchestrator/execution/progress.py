"""What a person sees while a sweep runs: one live board on a terminal, plain lines in a log."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from orchestrator.search.study import TrialRecord

SHORT = {"model.backbone": "backbone", "model.head": "head", "model.query_num": "query_num", "optim.lr": "lr"}
LOG_WIDTH = 160
EXCEPTION = re.compile(r"[\w.]*(Error|Exception|Diverged|Interrupt)\b[^:]*: ")
STYLE = {"running": "yellow", "complete": "green", "pruned": "dim", "failed": "red"}


def make_console(file: TextIO) -> Console:
    """A terminal's own width, or one that holds the leaderboard where there is no terminal."""
    return Console(file=file, highlight=False, width=None if file.isatty() else LOG_WIDTH)


def percent(value: float | None) -> str:
    """A score as the field prints it."""
    return "" if value is None else f"{100 * value:.1f}"


def reason(error: str) -> str:
    """The line of a traceback that says what was wrong; Ray's own advice often follows it."""
    lines = [line.strip() for line in error.strip().splitlines()] or [""]
    return next((line for line in reversed(lines) if EXCEPTION.match(line)), lines[-1])


def short(value: Any) -> str:
    """A sampled value in a table cell."""
    return f"{value:.2e}" if isinstance(value, float) else str(value)


def columns(records: Sequence[TrialRecord]) -> list[str]:
    """The override keys to show: the four that the project is about, then whatever else was sampled."""
    sampled = {key for record in records for key in record.overrides}
    return [key for key in SHORT if key in sampled] + sorted(sampled - SHORT.keys())


def leaderboard_table(records: Sequence[TrialRecord], objective: str, epochs: int, title: str) -> Table:
    """One row a trial, in the order given."""
    keys = columns(records)
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("trial", justify="right")
    for key in keys:
        table.add_column(SHORT.get(key, key))
    for name in ("epoch", f"{objective} %", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("state")
    for record in records:
        table.add_row(
            str(record.number),
            *(short(record.overrides[key]) if key in record.overrides else "" for key in keys),
            f"{record.epochs}/{epochs}",
            percent(record.score),
            f"{record.seconds:.1f}",
            record.state,
            style=STYLE[record.state],
        )
    return table


@dataclass
class Board:
    """Follows a sweep. `start`, `report` and `end` are called by the search's hooks."""

    console: Console
    objective: str
    epochs: int
    num_trials: int
    max_concurrent: int
    _rows: dict[int, TrialRecord] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)
    _epoch_seconds: list[float] = field(default_factory=list)
    _live: Live | None = None

    def __enter__(self) -> Board:
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=self._render,
                console=self.console,
                refresh_per_second=2,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*error)

    def add(self, records: Sequence[TrialRecord]) -> None:
        """Trials that ended before this driver started."""
        self._rows.update({record.number: record for record in records})

    def start(self, record: TrialRecord) -> None:
        self._rows[record.number] = record
        self._say(record, "started")

    def report(self, number: int, metrics: dict[str, Any]) -> None:
        row, epoch = self._rows[number], int(metrics["epoch"])
        history = {**row.history, epoch: metrics[self.objective]}
        if epoch > row.epochs:
            self._epoch_seconds.append((metrics["seconds"] - row.seconds) / (epoch - row.epochs))
        self._rows[number] = TrialRecord(
            number,
            "running",
            row.overrides,
            epoch,
            metrics[f"best_{self.objective}"],
            metrics["seconds"],
            None,
            history,
        )
        self._say(self._rows[number], f"loss {metrics['loss']:.3f}" if "loss" in metrics else "")

    def end(self, record: TrialRecord) -> None:
        self._rows[record.number] = record
        self._say(record, reason(record.error) if record.error else "")

    def _say(self, record: TrialRecord, note: str) -> None:
        if self._live is None:
            words = " ".join(f"{SHORT.get(k, k)}={short(v)}" for k, v in record.overrides.items())
            score = f"{self.objective} {percent(record.score)} %" if record.score is not None else ""
            self.console.print(
                f"[{time.monotonic() - self._started:6.1f} s] trial {record.number:3d} {record.state:8s} "
                f"epoch {record.epochs}/{self.epochs} {score:12s} {words} {note}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    def _render(self) -> Table:
        rows = sorted(self._rows.values(), key=lambda row: row.number)
        best = max((row for row in rows if row.score is not None), key=lambda row: row.score or 0.0, default=None)
        title = f"{sum(row.state != 'running' for row in rows)}/{self.num_trials} trials ended"
        if best is not None:
            title += f"   best so far: {percent(best.score)} % {self.objective} (trial {best.number})"
        return leaderboard_table(rows, self.objective, self.epochs, title + self._time_left(rows))

    def _time_left(self, rows: Sequence[TrialRecord]) -> str:
        """At most: as if every trial that has not ended ran to its last epoch."""
        if not self._epoch_seconds:
            return ""
        running = sum(self.epochs - row.epochs for row in rows if row.state == "running")
        to_come = (self.num_trials - len(rows)) * self.epochs
        mean = sum(self._epoch_seconds) / len(self._epoch_seconds)
        return f"   time left: at most {(running + to_come) * mean / self.max_concurrent:.0f} s"
