"""Groups of processes: whether one is still there, and how to end it.

A group is known by its number and the start of its leader, so that a later one of the same number is never taken for
it. Linux tells by `/proc`; elsewhere `ps` does, and less is known of a group whose leader has ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROCESSES = Path("/proc")
_PARENT, _GROUP, _SESSION, _STARTED = 1, 2, 3, 19  # where `_stat` has them
_GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Group:
    """A process group, with the start of its leader, which tells it from a later one with the same number."""

    number: int
    started: str


def is_there(number: int) -> bool:
    """Say whether a process of the group is left that is more than a zombie."""
    try:
        os.killpg(number, 0)  # nearly always there is no such group, which this finds out at once
        return _has_living(number)
    except (ProcessLookupError, PermissionError):
        return False


def stop_group(number: int, *, reap: Callable[[], object] = lambda: None) -> None:
    """End a process group: ask, wait a few seconds, then kill and wait for that; `reap` is called while waiting."""
    with suppress(ProcessLookupError, PermissionError):
        try:
            os.killpg(number, signal.SIGTERM)
            _wait_for_end(number, reap)
        finally:  # also when we are interrupted once more
            os.killpg(number, signal.SIGKILL)
        _wait_for_end(number, reap)


def _wait_for_end(number: int, reap: Callable[[], object]) -> None:
    deadline = time.monotonic() + _GRACE_SECONDS
    while time.monotonic() < deadline and _has_living(number):
        time.sleep(_POLL_SECONDS)
        reap()


def kill_group(number: int) -> None:
    """End a process group at once, without asking."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(number, signal.SIGKILL)


def is_running(group: Group) -> bool:
    """Say whether anything of the group is left, be it without its leader; a later group of that number is another."""
    if leader := start_of(group.number):
        return leader == group.started
    boot, _, started = group.started.rpartition(":")
    if not (_PROCESSES.exists() and started.isdigit() and boot == _boot()):
        return False
    # The system gives no process the number of a group that has members: these are ours unless they are older.
    return any(
        int(fields[_STARTED]) >= int(started) for fields in _living(group.number) if fields[_SESSION] == fields[_GROUP]
    )


def _has_living(number: int) -> bool:
    """Say whether a process of the group is left that is more than a zombie."""
    if not _PROCESSES.exists():  # what is there may be a zombie
        os.killpg(number, 0)
        return True
    return any(True for _ in _living(number))


def _living(number: int) -> Iterator[list[bytes]]:
    """Yield what `_stat` says of each process of the group that is more than a zombie."""
    wanted = str(number).encode()
    stats = (_stat(place.name) for place in _PROCESSES.iterdir() if place.name.isdigit())
    return (fields for fields in stats if fields and fields[_GROUP] == wanted and fields[0] != b"Z")


def is_ancestor(pid: int) -> bool:
    """Say whether this process is of those that a process has started, and that they have, as far as `/proc` tells."""
    above = os.getppid()
    while above > 1 and above != pid:
        fields = _stat(str(above))
        above = int(fields[_PARENT]) if fields else 0
    return above == pid


def _boot() -> str:
    """Return what tells this start of the machine from others, as far as the system says."""
    boot = _PROCESSES / "sys/kernel/random/boot_id"
    return boot.read_text().strip() if boot.exists() else ""


def start_of(pid: int) -> str:
    """Return when a process started, as text that no later process has; empty when there is none."""
    fields = _stat(str(pid))
    if fields:
        return f"{_boot()}:{fields[_STARTED].decode()}"
    if _PROCESSES.exists():
        return ""
    done = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _stat(pid: str) -> list[bytes]:
    """Return the fields of `/proc/PID/stat` from the third (the state) on, or none."""
    try:
        return (_PROCESSES / pid / "stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []
