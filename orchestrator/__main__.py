"""`python -m orchestrator` lists the commands; each is a module: `python -m orchestrator.<command>`."""

from __future__ import annotations

import sys
from importlib.util import find_spec

COMMANDS = {
    "sweep": "search a space for the best classifier; without arguments: the digits experiment",
    "train": "train one configuration, without a search",
    "table": "the brief's tables: measured, published and computed; the command that fills each empty cell",
}


def available() -> dict[str, str]:
    """The commands whose module exists, found without importing any of them."""
    return {name: line for name, line in COMMANDS.items() if find_spec(f"orchestrator.{name}")}


def main(arguments: list[str]) -> int:
    """Print the list; 2 if something was asked of it that only a command can do."""
    wrong = [argument for argument in arguments if argument not in ("-h", "--help")]
    if wrong:
        print(f"python -m orchestrator takes no arguments, but got: {' '.join(wrong)}", file=sys.stderr)
    print("python -m orchestrator.<command> [EXPERIMENT or FILE] [key=value ...] [flags]\n")
    for name, line in available().items():
        print(f"  {name:9} {line}")
    print("\n`--help` after a command says more.")
    return 2 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
