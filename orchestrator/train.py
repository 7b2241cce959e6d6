"""One trial, no search: trains the experiment as it stands, through the same code as a sweep.

python -m orchestrator.train [EXPERIMENT or FILE] [key=value ...] [--dry-run | --plan] [--new]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from orchestrator.execution import request


def main(argv: Sequence[str]) -> int:
    """Exit code: 0 done, 2 wrong request, 3 the trial failed, 4 interrupted."""
    parsed = request.parser("train", __doc__.splitlines()[0]).parse_intermixed_args(argv)
    checked = request.check("train", parsed.words, new=parsed.new)
    return request.act(checked, dry_run=parsed.dry_run, plan=parsed.plan)


if __name__ == "__main__":
    sys.exit(request.run(lambda: main(sys.argv[1:])))
