"""The brief's tables as lines of plain values: what was measured, what was published, and what a model costs.

Pure: rows, experiments, costs and results in, lines out. Measured and published numbers never share a field.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.config.experiment import Experiment
from orchestrator.reporting.matching import match
from orchestrator.reporting.results import Results
from orchestrator.reporting.rows import Benchmark, Row, Table
from trainables.config import ModelConfig
from trainables.cost import Cost


@dataclass(frozen=True)
class Line:
    """One row of one table. Scores lie in [0, 1]; names that start with `brief_` hold the brief's own numbers."""

    table: str
    model: str
    backbone: str
    use_ml_decoder: bool
    resolution: int
    """Height and width in pixels."""
    metric: str
    """mAP or top1."""
    measured: float | None
    """In a run folder; None: `command` fills it."""
    date: str | None
    run_folder: str | None
    trial: int | None
    differs: tuple[str, ...]
    """How the measured trial was trained otherwise than the experiment says."""
    train_images_per_s: float | None
    bundle: str | None
    """Folder of the measured trial's weights."""
    brief_score: float | None
    """Published, not measured here."""
    flops_g: float
    """10^9 multiplications and additions of one image, two a MAC, as in the brief."""
    macs_g: float
    params_m: float
    """10^6 parameters, the frozen ones included."""
    frozen_params: int
    brief_flops_g: float | None
    brief_params_m: float | None
    experiment: str
    config: str
    """Path of the experiment's YAML file."""
    command: str
    """What fills the row."""
    not_counted: tuple[str, ...]
    """Results under the experiment's name that do not belong in the row, and why."""


@dataclass(frozen=True)
class Recipe:
    """An experiment and where it is written."""

    experiment: Experiment
    config: str
    """Path of its YAML file, as it is to be shown."""


def fill(
    tables: Sequence[Table],
    recipes: Mapping[str, Recipe],
    results: Results,
    cost_of: Callable[[ModelConfig, int], Cost],
) -> list[Line]:
    """A line for every row of `tables`; `recipes` by the rows' names of experiments.

    `cost_of` a model and the size at which it is judged is `trainables.cost.cost`.
    """
    lines = []
    for table in tables:
        for row in table.rows:
            recipe = recipes[row.experiment]
            experiment = recipe.experiment
            num_classes = experiment.model.num_classes or table.benchmark.num_classes
            model = experiment.model.model_copy(update={"num_classes": num_classes})
            cost = cost_of(model, experiment.data.image_size)
            lines.append(_line(row, recipe, table.benchmark, cost, results))
    return lines


def _line(row: Row, recipe: Recipe, benchmark: Benchmark, cost: Cost, results: Results) -> Line:
    experiment = recipe.experiment
    found = match(experiment, benchmark, results)
    trial = found.trial
    return Line(
        table=row.table,
        model=row.model,
        backbone=row.backbone,
        use_ml_decoder=row.use_ml_decoder,
        resolution=experiment.data.image_size,
        metric=experiment.model.objective,
        measured=trial.score if trial else None,
        date=trial.date if trial else None,
        run_folder=str(trial.folder) if trial else None,
        trial=trial.number if trial else None,
        differs=found.differs,
        train_images_per_s=trial.images_per_s if trial else None,
        bundle=str(trial.bundle) if trial and trial.bundle else None,
        brief_score=row.brief.score,
        flops_g=cost.flops / 1e9,
        macs_g=cost.macs / 1e9,
        params_m=cost.params / 1e6,
        frozen_params=cost.frozen,
        brief_flops_g=row.brief.flops_g,
        brief_params_m=row.brief.params_m,
        experiment=experiment.name,
        config=recipe.config,
        command=command(row, experiment),
        not_counted=found.not_counted,
    )


def command(row: Row, experiment: Experiment) -> str:
    """What a person types to fill the row; FOLDER is where the data set lies, FILE the weights that the row names."""
    words = [] if experiment.data.root else ["data.root=FOLDER"]
    words += ["model.weights=FILE"] if experiment.model.weights else []
    return shlex.join(["python", "-m", "orchestrator.train", row.experiment, *words])
