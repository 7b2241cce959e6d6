"""The brief's two tables: what was measured, what it published, and what each model costs; needs no data.

python -m orchestrator.table [output.root=FOLDER] [--format markdown|csv|json] [--plot FILE.html]

Every row states the command that fills its cell until a run folder under output.root does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.config import overrides
from orchestrator.config.experiment import OutputConfig
from orchestrator.config.overrides import RequestError
from orchestrator.execution import request
from orchestrator.reporting.rows import TABLES, Table
from search_spaces import yaml_files

if TYPE_CHECKING:
    from orchestrator.reporting.brief_tables import Recipe

REPOSITORY = Path(__file__).parents[1]


def main(argv: Sequence[str], tables: Sequence[Table] = TABLES) -> int:
    """Exit code: 0 done, 2 wrong request."""
    about = __doc__.splitlines()[0]
    arguments = argparse.ArgumentParser(prog="python -m orchestrator.table", description=about)
    arguments.add_argument("words", nargs="*", metavar="output.root=FOLDER", help="where the run folders live")
    arguments.add_argument("--format", choices=("markdown", "csv", "json"), default="markdown")
    arguments.add_argument(
        "--plot", metavar="FILE.html", help="also write a web page: mAP against images per second, where measured"
    )
    parsed = arguments.parse_intermixed_args(argv)
    root = _root(parsed.words)
    page = Path(parsed.plot).expanduser().absolute() if parsed.plot else None
    if page is not None and (page.is_dir() or not page.parent.is_dir()):
        raise RequestError(f"--plot must name a file in a folder that exists, but got {parsed.plot}. Make the folder.")

    from orchestrator.reporting import brief_tables, render, results
    from trainables.cost import cost  # imports torch

    recipes = _recipes(tables)
    measured = results.read(root)
    lines = brief_tables.fill(tables, recipes, measured, cost)
    if parsed.format == "csv":
        text = render.csv_text(lines)
    elif parsed.format == "json":
        text = render.json_text(lines, root)
    else:
        text = render.markdown(tables, lines, root)
    print(text, end="")
    if page is not None:
        from orchestrator.reporting import plot

        plot.write(measured, page)
        print(f"plot: {page}", file=sys.stderr)
    return request.DONE


def _root(words: Sequence[str]) -> Path:
    """The folder of run folders.

    Raises:
        RequestError: a word sets anything else; the rows are the experiments as they stand.
    """
    given = overrides.parse_words(words)
    others = [key for key in given if key != "output.root"]
    if others:
        raise RequestError(
            f"table takes no key but output.root, but got {', '.join(others)}. Its rows are the experiments as they "
            "stand; give other values to `python -m orchestrator.train`."
        )
    return Path(given.get("output.root", OutputConfig().root)).expanduser().resolve()


def _recipes(tables: Sequence[Table]) -> dict[str, Recipe]:
    """The experiment of every row.

    Raises:
        RequestError: every mistake in any of them.
    """
    from orchestrator.reporting.brief_tables import Recipe

    recipes: dict[str, Recipe] = {}
    problems: list[str] = []
    for name in dict.fromkeys(row.experiment for table in tables for row in table.rows):
        try:
            path = yaml_files.find(name, overrides.FOLDER, "experiment").resolve()
            shown = path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path
            recipes[name] = Recipe(overrides.load(name), str(shown))
        except RequestError as error:
            problems += error.problems
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise RequestError(*problems)
    return recipes


if __name__ == "__main__":
    sys.exit(request.run(lambda: main(sys.argv[1:])))
