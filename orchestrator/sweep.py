"""The main job: search one space for one experiment, and end with a leaderboard.

    python -m orchestrator.sweep [EXPERIMENT or FILE] [key=value ...] [--trials N] [--dry-run | --plan] [--new]

The same command again goes on with a sweep that was interrupted, and returns at once when it is finished.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from orchestrator.execution import request


def main(argv: Sequence[str]) -> int:
    """Exit code: 0 done, 2 wrong request, 3 no trial succeeded, 4 interrupted."""
    arguments = request.parser("sweep", __doc__.splitlines()[0])
    arguments.add_argument(
        "--trials", type=int, metavar="N", help="the same as sweep.trials=N; extends a finished sweep"
    )
    parsed = arguments.parse_intermixed_args(argv)
    extra = [f"sweep.trials={parsed.trials}"] if parsed.trials is not None else []
    checked = request.check("sweep", parsed.words, extra=extra, new=parsed.new)
    return request.act(checked, dry_run=parsed.dry_run, plan=parsed.plan)


if __name__ == "__main__":
    sys.exit(request.run(lambda: main(sys.argv[1:])))
