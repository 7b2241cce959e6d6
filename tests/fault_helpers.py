"""What the fault tests share: drivers as real processes, and what lies in a run folder once they are gone."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import load_study
from optuna.trial import FrozenTrial, TrialState

from orchestrator.config.experiment import PrunerConfig
from orchestrator.search.pruner import Report, should_prune
from orchestrator.search.study import STATES, drop_torn_line
from trainables import checkpoint_files
from trainables.checkpoint_files import COUNTERS, MANIFEST

ROOT = Path(__file__).parent.parent
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Ray's own, which look after a node that was killed only every half minute or so; they touch no run folder."""
TAG = "FAULT_TEST_TAG"
"""In the environment of a driver and of everything that it starts, so that leftovers are found."""
REPORT = r"running +epoch [1-9]\d*/"
"""A line that says that a trial finished an epoch."""
MARK_S = 1e6
SPACE = """\
parameters:
  model.head: {choice: [ml_decoder, gap]}
  optim.lr: {float: [3e-4, 1e-2], log: true}
"""


def words(folder: Path, *more: str) -> list[str]:
    """A digits experiment of seconds, with its space, data and run folders in `folder`."""
    space = folder / "space.yaml"
    if not space.exists():
        space.write_text(SPACE)
    small = ["train_images=300", "val_images=100", "side=32"]
    return [
        "digits",
        *(f"data.digits.{word}" for word in small),
        "data.image_size=32",
        "model.backbone=test_resnet",
        "train.batch_size=32",
        "train.checkpoint_interval_s=0",
        f"sweep.space={space}",
        f"output.root={folder / 'runs'}",
        "cluster.num_cpus=2",
        *more,
    ]


def environment(**more: str) -> dict[str, str]:
    """Of a driver: this process's, without a cluster to belong to, and without settings for tests of Ray."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TUNE_"))}
    return {**kept, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", **more}


class Driver:
    """`python -m ...` in a session of its own, its output read as it comes; `with` ends all that it started."""

    def __init__(self, *command: str, env: Mapping[str, str] | None = None) -> None:
        self.tag = uuid.uuid4().hex
        self.lines: list[str] = []
        self._changed = threading.Condition()
        # Short, since Ray's sockets lie in it; its own, so that two drivers share nothing but the run folder.
        self._scratch = tempfile.mkdtemp(prefix="f", dir=os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env={**(environment() if env is None else env), TAG: self.tag, "RAY_TMPDIR": self._scratch},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def matching(self, pattern: str) -> list[str]:
        return [line for line in self.lines if re.search(pattern, line)]

    def wait_for(self, pattern: str, *, count: int = 1, timeout_s: float = 60.0) -> list[str]:
        """Wait until `count` lines match; the lines."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while len(found := self.matching(pattern)) < count:
                left = deadline - time.monotonic()
                assert self._reader.is_alive(), f"the driver ended before {pattern!r} was printed:\n{self.output}"
                assert left > 0, f"{pattern!r} was not printed {count} times in {timeout_s} s:\n{self.output}"
                self._changed.wait(min(left, 1.0))
        return found

    def finish(self, timeout_s: float = 90.0) -> int:
        """Wait for the end; the exit code."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the driver did not end in {timeout_s} s:\n{self.output}") from None
        self._reader.join(10)
        return code

    def kill(self) -> float:
        """SIGKILL to the driver alone; the seconds until everything that it started has ended by itself."""
        assert self.process.poll() is None, f"the driver had ended before it was killed:\n{self.output}"
        started = time.monotonic()
        self.process.kill()
        self.process.wait(10)
        self.wait_until_alone()
        return time.monotonic() - started

    def processes(self) -> dict[int, str]:
        """What runs of the driver and all that it started: process id -> title."""
        found = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                mine = f"{TAG}={self.tag}".encode() in (folder / "environ").read_bytes().split(b"\0")
                title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:  # it has ended, or is another user's
                continue
            if mine and title:  # a zombie has none
                found[int(folder.name)] = title
        return found

    def wait_until_alone(self, timeout_s: float = 30.0) -> None:
        """Wait until nothing that the driver started is left that could train or write."""

        def others() -> dict[int, str]:  # a worker that is being started waits for its node half a minute, idle
            found = self.processes().items()
            return {pid: title for pid, title in found if title.startswith("ray::") and title not in AGENTS}

        wait_until(lambda: not others(), timeout_s, lambda: f"left behind: {others()}")

    def __enter__(self) -> Driver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        try:
            self.wait_until_alone()
        finally:
            for pid in self.processes():
                os.kill(pid, signal.SIGKILL)
            self._reader.join(10)
            shutil.rmtree(self._scratch, ignore_errors=True)


def wait_until(holds: Any, timeout_s: float, say: Any = lambda: "it did not come true") -> float:
    """Poll until `holds()`; the seconds it took."""
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < timeout_s, f"after {timeout_s} s: {say()}"
        time.sleep(0.05)
    return time.monotonic() - started


def run_folder(folder: Path) -> Path:
    """The only run folder of `words(folder)`."""
    [found] = [path for path in (folder / "runs").glob("digits-*") if path.is_dir()]
    return found


def trials(run: Path) -> list[FrozenTrial]:
    """Those that the study in a run folder was asked for; the journal itself is not touched."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "study.journal"
        shutil.copy(run / "study.journal", copy)
        drop_torn_line(copy)
        found = load_study(study_name="digits", storage=JournalStorage(JournalFileBackend(str(copy)))).get_trials()
    return [trial for trial in found if trial.state != TrialState.WAITING]


def states(run: Path) -> dict[int, str]:
    """Trial number -> state."""
    return {trial.number: STATES[trial.state] for trial in trials(run)}


def leaderboard(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "leaderboard.json").read_text())


def metrics(run: Path, number: int) -> list[dict[str, Any]]:
    """Lines of a trial's metrics.jsonl."""
    path = run / "trials" / f"{number:04d}" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def checkpoint_of(run: Path, number: int) -> tuple[int, Path | None]:
    """Epoch and folder of a trial's newest checkpoint; 0 and None without one."""
    found = checkpoint_files.latest(run / "trials" / f"{number:04d}" / "checkpoints")
    return (found[1].epoch, found[0]) if found else (0, None)


def mark(folder: Path) -> None:
    """Make a checkpoint tell of MARK_S seconds more: only a trial that goes on from it reports so many."""
    counters, manifest = (json.loads((folder / name).read_text()) for name in (COUNTERS, MANIFEST))
    counters["seconds"] += MARK_S
    text = json.dumps(counters)
    (folder / COUNTERS).write_text(text)
    manifest[COUNTERS] = {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def check_verdicts(run: Path, epochs: int, pruner: PrunerConfig) -> int:
    """Judge every recorded report again, and compare with how each trial ended; the number of verdicts at rungs.

    A trial that went on past a rung must have been among the best there, with all earlier reports counting, those of
    killed drivers included; a pruned one must not.
    """
    ended = trials(run)
    history = [
        Report(
            trial.user_attrs[f"report.{epoch}"]["order"],
            trial.number,
            trial.user_attrs["overrides"]["model.head"],
            epoch,
            value,
        )
        for trial in ended
        for epoch, value in trial.intermediate_values.items()
    ]
    assert sorted(report.order for report in history) == list(range(len(history)))  # each counted once
    verdicts = 0
    for trial in ended:
        own = [report for report in history if report.number == trial.number]
        assert [report.epoch for report in own] == list(range(1, len(own) + 1))  # none skipped, none twice
        stops = [should_prune(pruner, epochs, history, report) for report in own]
        expected = "pruned" if stops[-1] else "complete" if own[-1].epoch == epochs else "running"
        assert (STATES[trial.state], any(stops[:-1])) == (expected, False), f"trial {trial.number}: {stops}"
        verdicts += sum(report.epoch in (1, 3, 9) for report in own)
    return verdicts


def check_ended(run: Path, num_trials: int, states_allowed: Sequence[str] = ("complete", "pruned")) -> None:
    """Exactly the requested trials, in the study and on the leaderboard, none of them left running."""
    found = states(run)
    assert sorted(found) == list(range(num_trials))
    assert set(found.values()) <= set(states_allowed), found
    board = {row["number"]: row["state"] for row in leaderboard(run)}
    assert len(leaderboard(run)) == num_trials and board == found


UNWINDING_S = 4.0


def sweep_that_unwinds_slowly(argv: Sequence[str]) -> int:
    """The sweep command, but for its trials: each reports less than the one before it, and takes its time to end."""
    import ray.tune

    from orchestrator import sweep
    from orchestrator.execution import driver

    def run_trial(config: dict[str, Any], *, context: Any) -> None:
        value = 0.9 - 0.1 * config["number"]
        try:
            for epoch in range(1, context.experiment.train.epochs + 1):
                of_training = {"loss": 1.0, "lr": 0.1, "seconds": 1.0 * epoch}
                ray.tune.report({"epoch": epoch, "mAP": value, "best_mAP": value, **of_training})
        finally:
            time.sleep(UNWINDING_S)

    driver.run_trial = run_trial
    return sweep.main(argv)


if __name__ == "__main__":
    sys.exit(sweep_that_unwinds_slowly(sys.argv[1:]))
