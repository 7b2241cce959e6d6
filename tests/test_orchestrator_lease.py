import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from orchestrator.execution.lease import Lease, LeaseHeldError

HOLD = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from orchestrator.execution.lease import Lease
    Lease(Path(sys.argv[1])).acquire()
    print("held", flush=True)
    time.sleep(60)
    """
)


def test_a_second_driver_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    with Lease(tmp_path):
        before = (tmp_path / "lease.json").read_text()
        with pytest.raises(LeaseHeldError, match=r"held by process \d+ on .*--new"):
            Lease(tmp_path).acquire()
        assert (tmp_path / "lease.json").read_text() == before


def test_a_released_lease_can_be_taken(tmp_path: Path) -> None:
    with Lease(tmp_path):
        pass
    with Lease(tmp_path):
        pass
    assert not (tmp_path / "lease.json").exists()


def test_a_killed_driver_leaves_a_lease_that_can_be_taken_at_once(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]
    )
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    with pytest.raises(LeaseHeldError):
        Lease(tmp_path).acquire()
    holder.kill()
    holder.wait()
    with Lease(tmp_path):
        pass


def test_a_lease_of_another_machine_is_believed_until_it_expires(tmp_path: Path) -> None:
    foreign = {
        "owner": "x",
        "host": "elsewhere",
        "pid": 1,
        "processes": "x",
        "started": "0",
        "expires": time.time() + 0.3,
    }
    (tmp_path / "lease.json").write_text(json.dumps(foreign))
    with pytest.raises(LeaseHeldError, match="elsewhere"):
        Lease(tmp_path).acquire()
    time.sleep(0.35)
    with Lease(tmp_path):
        pass


def test_a_driver_that_lost_its_lease_is_told_and_leaves_the_new_one_alone(tmp_path: Path) -> None:
    lost: list[str] = []
    lease = Lease(tmp_path, ttl_s=0.4)
    lease.on_lost = lambda: lost.append("told")
    with lease:
        (tmp_path / "lease.json").write_text(json.dumps({"owner": "another", "expires": time.time() + 60}))
        time.sleep(0.3)
    assert lost == ["told"]
    assert json.loads((tmp_path / "lease.json").read_text())["owner"] == "another"


def test_a_lease_is_renewed_while_it_is_held(tmp_path: Path) -> None:
    with Lease(tmp_path, ttl_s=0.4):
        time.sleep(0.8)
        assert json.loads((tmp_path / "lease.json").read_text())["expires"] > time.time()


def test_a_lease_whose_process_is_in_another_container_of_this_host_is_believed(tmp_path: Path) -> None:
    with Lease(tmp_path):
        held = json.loads((tmp_path / "lease.json").read_text())
    held |= {"processes": held["processes"] + "other", "pid": 2**22, "expires": time.time() + 60}
    (tmp_path / "lease.json").write_text(json.dumps(held))
    with pytest.raises(LeaseHeldError):
        Lease(tmp_path).acquire()


def test_a_disk_that_fails_for_a_moment_does_not_lose_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, lost = Lease(tmp_path, ttl_s=0.8), []
    lease.on_lost = lambda: lost.append("told")
    with lease:
        with monkeypatch.context() as patch:
            patch.setattr(lease, "_write", lambda: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            time.sleep(0.5)
        time.sleep(0.5)
        with pytest.raises(LeaseHeldError):
            Lease(tmp_path).acquire()
    assert not lost
