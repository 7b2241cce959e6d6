"""`python -m orchestrator`: the list of commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import __main__ as orchestrator_main

ROOT = Path(__file__).parent.parent


def test_it_lists_the_commands_that_exist_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert orchestrator_main.main([]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert listed == {name for name in orchestrator_main.COMMANDS if (ROOT / f"orchestrator/{name}.py").is_file()}


def test_it_takes_no_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert orchestrator_main.main(["sweep", "digits"]) == 2
    assert "sweep digits" in capsys.readouterr().err


def test_it_imports_no_command() -> None:
    code = "import sys, orchestrator.__main__ as m; m.main([]); print(*sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [name for name in done.stderr.split() if name.startswith("orchestrator.")] == ["orchestrator.__main__"]
