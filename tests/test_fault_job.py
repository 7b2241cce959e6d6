"""A cluster that asks for a token: the sweep as a job on it, and who is turned away."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import fault_helpers as faults
from tests.fault_helpers import REPORT, Driver

pytestmark = [pytest.mark.fault, pytest.mark.timeout(280)]

RAY = "ray.scripts.scripts"
"""What the `ray` command runs."""


@dataclass(frozen=True)
class Head:
    """A cluster of one node, started as a person starts it."""

    address: str
    env: dict[str, str]
    token: str

    def ask(self, path: str, token: str | None) -> tuple[int, Any]:
        """GET from its HTTP interface: status and JSON."""
        request = urllib.request.Request(f"{self.address}{path}")
        if token is not None:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, None

    def is_up(self) -> bool:
        try:
            return self.ask("/api/jobs/", self.token)[0] == 200
        except OSError:
            return False

    def submit(self, *words: str) -> tuple[int, str, dict[str, Any]]:
        """`ray job submit` of a sweep, to its end: the command's exit code, its output, what is known of the job."""
        entry = ["--", "python", "-m", "orchestrator.sweep", *words]
        with Driver(RAY, "job", "submit", "--address", self.address, "--working-dir", ".", *entry, env=self.env) as cli:
            code, output = cli.finish(150), cli.output
        [job] = set(re.findall(r"raysubmit_\w+", output))
        return code, output, self.ask(f"/api/jobs/{job}", self.token)[1]


def free_ports(number: int) -> list[int]:
    """Ports that nothing listens on just now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    """`ray start --head` with token authentication; everything of it ends with the test."""
    home = tmp_path / "home"
    home.mkdir()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `python` of a job is ours
    env = faults.environment(
        HOME=str(home), PATH=path, RAY_AUTH_MODE="token", RAY_USAGE_STATS_ENABLED="0", RAY_COLOR_PREFIX="0"
    )
    made = subprocess.run(
        [sys.executable, "-m", RAY, "get-auth-token", "--generate"], env=env, capture_output=True, text=True, timeout=60
    )
    token = made.stdout.strip()
    assert (home / ".ray" / "auth_token").read_text().strip() == token
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    options = [f"--{name}={port}" for name, port in ports.items()]
    with Driver(RAY, "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats", *options, env=env) as node:
        found = Head(f"http://127.0.0.1:{ports['dashboard-port']}", env, token)
        faults.wait_until(found.is_up, 60, lambda: node.output)
        yield found
        os.killpg(node.process.pid, signal.SIGKILL)  # the head's own processes; its workers end with them


def test_a_sweep_runs_as_a_job_on_a_cluster_with_a_token(head: Head, tmp_path: Path) -> None:
    assert head.ask("/api/jobs/", None)[0] == 401
    assert head.ask("/api/jobs/", secrets.token_hex(32))[0] == 403
    assert head.ask("/api/jobs/", head.token) == (200, [])

    code, output, job = head.submit(*faults.words(tmp_path, "sweep.trials=4", "train.epochs=3"))
    assert (code, job["status"], job["driver_exit_code"]) == (0, "SUCCEEDED", 0), output
    run = faults.run_folder(tmp_path)
    faults.check_ended(run, 4)
    _, answer = head.ask(f"/api/jobs/{job['submission_id']}/logs", head.token)
    log = answer["logs"]
    assert f"leaderboard of {run.name}" in log and f"run folder: {run}" in log and "cluster at " in log
    for row in faults.leaderboard(run):
        assert re.search(rf"│ +{row['number']} │.*│ +{100 * row['mAP']:.1f} │.*│ {row['state']} +│", log)
    assert "leaderboard of" in output and not re.search(head.token, output + log)

    code, output, job = head.submit("digits", "optim.learning_rate=1", f"output.root={tmp_path / 'other'}")
    assert (code, job["status"], job["driver_exit_code"]) == (1, "FAILED", 2), output
    assert "optim.learning_rate is not a key of an experiment" in output and "Traceback" not in output
    assert not (tmp_path / "other").exists()


def test_a_ray_of_our_own_takes_no_process_without_its_token(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    env = faults.environment(HOME=str(home))
    words = faults.words(tmp_path, "sweep.trials=8", "train.epochs=200", "sweep.pruner.name=none")
    with Driver("orchestrator.sweep", *words, env=env) as driver:
        driver.wait_for(REPORT)
        titles = "\n".join(driver.processes().values())
        found = re.search(r"--gcs-address=(\S+)", titles)
        assert found, titles
        code = f"import ray; ray.init({found[1]!r}); print('joined', ray.cluster_resources())"
        strangers = [
            subprocess.Popen(
                [sys.executable, "-c", code],
                env={**env, **auth},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for auth in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64})
        ]
        for stranger in strangers:
            said, _ = stranger.communicate(timeout=90)
            assert stranger.returncode != 0 and "joined" not in said
            assert "uthentication" in said or "Failed to connect" in said
        assert driver.process.poll() is None
    assert not list(home.rglob("auth_token"))  # nothing that stays behind
