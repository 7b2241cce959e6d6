"""Lines of the brief's tables as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from orchestrator.reporting.brief_tables import Line
from orchestrator.reporting.rows import Table

LEGEND = """\
Measured: in a run folder, with its date; where there is none, the command that fills the cell. Brief: the number that
the brief publishes for the row, not measured here. FLOPs = 2 x MACs of one image at the row's resolution, convolutions
and matrix products counted; parameters include the decoder's frozen queries.
"""
METRICS = {"mAP": "mAP (%)", "top1": "top-1 (%)"}


def markdown(tables: Sequence[Table], lines: Sequence[Line], root: Path) -> str:
    """A document: each table, what did not count below it, and what the columns mean."""
    parts = []
    for table in tables:
        rows = [line for line in lines if line.table == table.name]
        parts.append(f"## Table {table.name}: {table.title}\n\n{_table(rows)}{_not_counted(rows)}")
    return "\n".join([*parts, LEGEND, f"Run folders and bundles lie under `{root}`.\n"])


def csv_text(lines: Sequence[Line]) -> str:
    """One header and one record a row of any table; scores in [0, 1], lists divided by `; `."""
    file = io.StringIO()
    writer = csv.DictWriter(file, [field.name for field in fields(Line)], lineterminator="\n")
    writer.writeheader()
    for line in lines:
        record = asdict(line)
        for name in ("differs", "not_counted"):
            record[name] = "; ".join(record[name])
        writer.writerow(record)
    return file.getvalue()


def json_text(lines: Sequence[Line], root: Path) -> str:
    """The root and a list of records; scores in [0, 1]."""
    return json.dumps({"root": str(root), "rows": [asdict(line) for line in lines]}, indent=1) + "\n"


def _table(lines: Sequence[Line]) -> str:
    """A Markdown table; the brief's own FLOPs and parameters have columns where it has any."""
    score = " / ".join(dict.fromkeys(METRICS[line.metric] for line in lines))
    has_cost = any(line.brief_flops_g is not None for line in lines)
    head = ["model", "backbone", "use_ml_decoder", "resolution", f"{score} measured", f"{score} brief"]
    head += ["FLOPs (G)", *(["FLOPs (G) brief"] if has_cost else []), "MACs (G)"]
    head += ["Params (M)", *(["Params (M) brief"] if has_cost else []), "config", "bundle"]
    return "".join(map(_row, [head, ["---"] * len(head), *(_cells(line, has_cost) for line in lines)]))


def _cells(line: Line, has_cost: bool) -> list[str]:
    return [
        _escaped(line.model),
        _escaped(line.backbone),
        str(line.use_ml_decoder),
        f"{line.resolution}x{line.resolution}",
        _measured(line),
        _percent(line.brief_score),
        f"{line.flops_g:.3f}",
        *([_fixed(line.brief_flops_g)] if has_cost else []),
        f"{line.macs_g:.3f}",
        f"{line.params_m:.3f}",
        *([_fixed(line.brief_params_m)] if has_cost else []),
        f"[{_escaped(line.experiment)}]({line.config})",
        _code(f"{_name(line)}/best") if line.bundle else "",
    ]


def _measured(line: Line) -> str:
    if line.measured is None:
        return _code(line.command)
    source = f"{line.date}, {_code(_name(line))}, trial {line.trial}"
    differs = f"; with {', '.join(map(_code, line.differs))}" if line.differs else ""
    return f"**{_percent(line.measured)}** ({source}{differs})"


def _name(line: Line) -> str:
    """Of the run folder, under the root that the document ends with."""
    return Path(line.run_folder or "").name


def _not_counted(lines: Iterable[Line]) -> str:
    """Two rows of one table never share an experiment, so nothing is said twice within a table."""
    reasons = [reason for line in lines for reason in line.not_counted]
    return "".join(["\nNot counted:\n\n", *(f"- {_escaped(reason)}\n" for reason in reasons)]) if reasons else ""


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _percent(score: float | None) -> str:
    return "" if score is None else f"{100 * score:.1f}"


def _fixed(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is; underscores within words are safe already."""
    return text.replace("*", "\\*").replace("|", "\\|")
