"""From a command line to a request that is known to be right; nothing is started or written before that."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console

from cluster.node import local_node
from datasets.schema import DataError
from orchestrator.config import overrides
from orchestrator.config.experiment import Experiment, PrunerConfig
from orchestrator.config.overrides import RequestError
from orchestrator.execution import dataset
from orchestrator.execution.dataset import Source
from orchestrator.execution.problems import batch_problems, class_problems, with_weights
from orchestrator.execution.progress import make_console
from orchestrator.execution.sizing import GIB, place, store_bytes
from search_spaces import space as spaces
from search_spaces.space import ResolvedSpace, SpaceError
from trainables.groups import distinct_query_nums
from trainables.scaling import scaled_lr

DONE, WRONG_REQUEST, NO_TRIAL_SUCCEEDED, INTERRUPTED = 0, 2, 3, 4
"""Exit codes."""
DEFAULT_EXPERIMENT = "digits"
SAMPLED_GROUPS = ("augment.", "model.", "words.", "loss.", "optim.", "train.")
"""What a trial has of its own. Data, cluster and output belong to the sweep: all its trials share them."""
SHARED_KEYS = frozenset(
    {"model.num_classes", "model.in_features", "model.task", "train.epochs", "train.keep_checkpoints"}
)
"""Not these, though: rungs compare trials by one metric, at equal epochs of schedules of one length."""


@dataclass(frozen=True)
class Request:
    """A checked experiment, its data and its space."""

    experiment: Experiment
    source: Source
    space: ResolvedSpace
    command: str
    """`sweep` or `train`."""
    words: tuple[str, ...]
    """The command line as given, to print the command that goes on."""
    new: bool = False

    def again(self, trials: int | None = None) -> str:
        """The command that goes on with this request, or extends it to `trials`."""
        words = [w for w in self.words if trials is None or not w.startswith("sweep.trials=")]
        more = [] if trials is None else ["--trials", str(trials)]
        return shlex.join(["python", "-m", f"orchestrator.{self.command}", *words, *more])

    @property
    def root(self) -> Path:
        """Where run folders live: absolute, since Tune changes the directory of a trial."""
        return Path(self.experiment.output.root).expanduser().resolve()


def parser(command: str, about: str) -> argparse.ArgumentParser:
    """The arguments that `sweep` and `train` share."""
    arguments = argparse.ArgumentParser(prog=f"python -m orchestrator.{command}", description=about)
    arguments.add_argument(
        "words",
        nargs="*",
        metavar="EXPERIMENT | key=value",
        help=f"an experiment's name or YAML file (default: {DEFAULT_EXPERIMENT}), and override words",
    )
    arguments.add_argument(
        "--dry-run", action="store_true", help="print the resolved tree and what it needs; start nothing"
    )
    arguments.add_argument("--plan", action="store_true", help="print what fits on the cluster; train nothing")
    arguments.add_argument("--new", action="store_true", help="start beside an earlier run instead of going on with it")
    return arguments


def split_words(words: Sequence[str]) -> tuple[str, list[str]]:
    """The experiment, and the override words.

    Raises:
        RequestError: more than one experiment is named.
    """
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise RequestError(
            f"one experiment at a time, but got {', '.join(names)}. Override words have the form key=value."
        )
    return (names or [DEFAULT_EXPERIMENT])[0], [word for word in words if "=" in word]


def check(command: str, words: Sequence[str], *, extra: Sequence[str] = (), new: bool = False) -> Request:
    """Load an experiment and look at everything that it names.

    Raises:
        RequestError: every mistake found in the words, the file, the data and the space.
    """
    name, given = split_words(words)
    experiment = overrides.load(name, [*given, *extra])
    problems: list[str] = []
    source: Source | None = None
    try:
        source = dataset.look(experiment.data)
    except DataError as error:
        problems.append(str(error))
    experiment = with_weights(experiment, problems)
    num_classes = len(source.classes) if source else None
    problems += class_problems(experiment, num_classes)
    if source is not None:
        problems += batch_problems(experiment, source.num_train)
    if command == "train":
        pruner = PrunerConfig(name="none")
        sweep = experiment.sweep.model_copy(update={"trials": 1, "pruner": pruner})
        experiment, space = experiment.model_copy(update={"sweep": sweep}), ResolvedSpace(())
    else:
        space = _space(experiment, source, problems)
        if experiment.train.epochs == 0:
            problems.append(
                "a sweep trains: train.epochs >= 1 must hold, but got train.epochs=0. To score weights as they are, "
                "use `python -m orchestrator.train`."
            )
    if problems or source is None:
        raise RequestError(*problems)
    return Request(experiment, source, space, command, (*words, *extra), new)


def act(request: Request, *, dry_run: bool, plan: bool) -> int:
    """Print the tree, print the plan, or drive the request. Only the last two import Ray and torch."""
    console = make_console(sys.stdout)
    if dry_run:
        print_tree(request, console)
        return DONE
    from orchestrator.execution import driver, placement

    if plan:
        placement.connect_and_plan(request, console)
        return DONE
    return driver.drive(request, console)


def print_tree(request: Request, console: Console) -> None:
    """The resolved experiment, and what it needs and how it fits this machine, by arithmetic alone.

    Raises:
        RequestError: it does not fit.
    """
    experiment, source = request.experiment, request.source
    console.print(yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False), end="")
    batch_size = scaled_lr(experiment.optim, experiment.train, experiment.cluster.workers)[0]
    steps = -(-source.num_train // batch_size)
    here = local_node(experiment.cluster.num_cpus, store_bytes(experiment))
    reasons: Sequence[str] = ("a cluster decides where trials run: see --plan",)
    if not (experiment.cluster.address or os.environ.get("RAY_ADDRESS")):
        reasons = place(experiment, source.num_images, [here]).reasons
    for line in (
        f"data: {source.num_train} train and {source.num_val} val images, {len(source.classes)} classes",
        f"search: {experiment.sweep.trials} trials over "
        + (", ".join(parameter.key for parameter in request.space.parameters) or "nothing"),
        f"a full trial: {experiment.train.epochs} epochs x {steps} steps",
        f"this machine: {here.num_cpus:g} CPUs, {here.num_gpus:g} GPUs, "
        f"object store {here.object_store_bytes / GIB:.1f} GiB",
        *reasons,
        "dry run: nothing was started, nothing was written",
    ):
        console.print(f"# {line}", soft_wrap=True)


def run(main: Callable[[], int]) -> int:
    """Run a command; a wrong request is printed, all of it, and becomes exit code 2."""
    try:
        return main()
    except (RequestError, SpaceError) as error:
        problems: Sequence[str] = error.problems
    except DataError as error:
        problems = [str(error)]
    except KeyboardInterrupt:  # before there were trials to stop
        print("interrupted; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return WRONG_REQUEST


def _space(experiment: Experiment, source: Source | None, problems: list[str]) -> ResolvedSpace:
    """The space of a sweep; empty when it has problems, or when the data does not say how many classes there are."""
    num_classes = len(source.classes) if source else None
    num_train = source.num_train if source else None
    try:
        space = spaces.read(experiment.sweep.space)
    except SpaceError as error:
        problems += error.problems
        return ResolvedSpace(())
    keys = overrides.keys()
    found = space.problems(num_classes, keys, distinct_query_nums)
    known = ResolvedSpace(tuple(item for item in space.parameters if item.key in keys))
    for key, value in known.ends():
        try:
            sampled = overrides.with_overrides(experiment, {key: value})
        except RequestError as error:
            found += [f"space {space.name}: {key}={value}: {problem}" for problem in error.problems]
            continue
        if num_train is not None and key.startswith("train.batch_size"):
            found += [f"space {space.name}: {problem}" for problem in batch_problems(sampled, num_train)]
    if experiment.model.weights is not None and any(item.key == "model.backbone" for item in known.parameters):
        found.append(
            f"space {space.name}: model.backbone cannot vary while model.weights={experiment.model.weights} holds the "
            "weights of one. Take a space without it (sweep.space=coco_heads), or drop model.weights."
        )
    found += [
        f"space {space.name}: {item.key} is shared by all trials of a sweep, so it cannot vary within one. "
        "Set it as an override word, and run one sweep for each value."
        for item in known.parameters
        if not item.key.startswith(SAMPLED_GROUPS) or item.key in SHARED_KEYS
    ]
    problems += found
    return ResolvedSpace(()) if found or num_classes is None else space.resolve(num_classes, distinct_query_nums)
