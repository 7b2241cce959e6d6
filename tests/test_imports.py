"""The import law: orchestrator knows the four siblings, they know nobody, and Ray has four doors.

A dry run must also stay light, so the configuration imports no torch, ray or timm.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SIBLINGS = ("cluster", "datasets", "search_spaces", "trainables")
RAY_DOORS = ("trainables/worker.py", "datasets/pipeline.py", "cluster/runtime.py")
HEAVY = ("torch", "ray", "timm")
FILES = sorted(path for package in ("orchestrator", *SIBLINGS) for path in (ROOT / package).rglob("*.py"))


def imported(source: str, package: str) -> Iterator[str]:
    """The top-level names that a file of `package` imports, wherever in the file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield package if node.level else str(node.module).partition(".")[0]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield str(node.args[0].value).partition(".")[0]


def violations(path: str, source: str) -> list[str]:
    """What a file at `path` (relative, with slashes) imports and may not."""
    package = path.partition("/")[0]
    names = set(imported(source, package))
    forbidden = {"orchestrator", *SIBLINGS} - {package} if package in SIBLINGS else set()
    if package in SIBLINGS and path not in RAY_DOORS:
        forbidden |= {"ray"}
    return sorted(names & forbidden)


@pytest.mark.parametrize("path", [path.relative_to(ROOT).as_posix() for path in FILES])
def test_a_file_keeps_the_import_law(path: str) -> None:
    assert violations(path, (ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "source", "caught"),
    [
        ("trainables/fit.py", "import ray", ["ray"]),
        ("trainables/fit.py", "def f():\n    from ray.train import report", ["ray"]),
        ("trainables/fit.py", "import importlib\nimportlib.import_module('ray.data')", ["ray"]),
        ("trainables/fit.py", "from datasets.coco import read", ["datasets"]),
        ("datasets/coco.py", "import orchestrator.sweep", ["orchestrator"]),
        (
            "search_spaces/space.py",
            "from trainables import groups; import cluster",
            ["cluster", "trainables"],
        ),
        ("trainables/worker.py", "import ray, trainables.fit", []),
        ("trainables/fit.py", "from . import losses; import rayon; x = 'import ray'", []),
        ("orchestrator/search/tune.py", "import ray, datasets, trainables", []),
    ],
)
def test_a_violation_would_be_caught(path: str, source: str, caught: list[str]) -> None:
    assert violations(path, source) == caught


def test_the_law_is_applied_to_real_files() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == {"orchestrator", *SIBLINGS}


def heavy_after(code: str, path: str = "") -> list[str]:
    """Which of `HEAVY` a fresh interpreter has loaded after `code`; `path` is searched first."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*(n for n in {HEAVY} if n in sys.modules))"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_the_configuration_is_light() -> None:
    code = (
        "import search_spaces.space, orchestrator.__main__\n"
        "from orchestrator.config.overrides import load\n"
        "search_spaces.space.read(load('digits').sweep.space)"
    )
    assert heavy_after(code) == []


def test_a_heavy_import_would_be_noticed(tmp_path: Path) -> None:
    for name in HEAVY:
        (tmp_path / f"{name}.py").touch()  # the real ones take seconds
    assert heavy_after("import timm, torch", str(tmp_path)) == ["torch", "timm"]
