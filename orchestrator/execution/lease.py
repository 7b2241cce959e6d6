"""One driver writes a run folder: a lease with an owner and an expiry."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

TTL_S = 60.0


class LeaseHeldError(RuntimeError):
    """Another driver is writing this run folder."""


class Lease:
    """Held from `acquire` to `release`, and renewed by a thread in between.

    A lease can be taken over when it has expired, or at once when its owner was a process of this machine that
    no longer runs (a driver that was killed leaves its lease behind).
    """

    def __init__(self, folder: Path, ttl_s: float = TTL_S) -> None:
        self._path = folder / "lease.json"
        self._ttl_s = ttl_s
        self.on_lost: Callable[[], None] = lambda: None
        """Called, once and from the renewing thread, when the lease is lost."""
        self.lost = False
        self._owner = uuid.uuid4().hex
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def acquire(self) -> Lease:
        """Take the lease.

        Raises:
            LeaseHeldError: another driver holds it; the message says which, and until when.
        """
        with self._guard():
            held = self._read()
            if held is not None and not _is_stale(held):
                raise LeaseHeldError(
                    f"one driver at a time may write a run folder, but {self._path.parent} is held by process "
                    f"{held['pid']} on {held['host']} for another {held['expires'] - time.time():.0f} s at least. "
                    "Wait for it, stop it, or use --new."
                )
            self._write()
        self._thread.start()
        return self

    def release(self) -> None:
        """Give the lease back."""
        self._released.set()
        self._thread.join()
        with self._guard():
            if self._is_ours():
                self._path.unlink(missing_ok=True)

    def __enter__(self) -> Lease:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _renew(self) -> None:
        renewed = time.monotonic()
        while not self._released.wait(self._ttl_s / 4):
            try:
                with self._guard():
                    if not self._is_ours():  # this process slept for longer than the lease lasts
                        break
                    self._write()
                renewed = time.monotonic()
            except OSError:  # a full disk or a file system that is away for a moment: the lease still holds
                if time.monotonic() - renewed > self._ttl_s:
                    break
        else:
            return
        self.lost = True
        self.on_lost()

    @contextmanager
    def _guard(self) -> Iterator[None]:
        """Drivers look at the lease and change it one after the other."""
        with open(self._path.with_suffix(".lock"), "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _is_ours(self) -> bool:
        held = self._read()
        return held is not None and held["owner"] == self._owner

    def _read(self) -> dict[str, Any] | None:
        try:
            return json.loads(self._path.read_text())
        except FileNotFoundError:
            return None

    def _write(self) -> None:
        beside = self._path.with_suffix(f".{self._owner}")
        beside.write_text(
            json.dumps(
                {
                    "owner": self._owner,
                    "host": socket.gethostname(),
                    "pid": os.getpid(),
                    "processes": _process_space(),
                    "started": _process_start(os.getpid()),
                    "expires": time.time() + self._ttl_s,
                }
            )
        )
        os.replace(beside, self._path)


def _is_stale(held: dict[str, Any]) -> bool:
    if held["expires"] < time.time():
        return True
    if held["processes"] is None or held["processes"] != _process_space():
        return False  # its process cannot be seen from here
    return _process_start(held["pid"]) != held["started"]  # the start tells it from a later process of that number


def _process_space() -> str | None:
    """Which processes this one can see: containers of one host have the host's name, and numbers of their own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _process_start(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot; None when it does not run (Linux)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]  # a zombie writes nothing
