"""What commands used: their CPU time and memory, as the system counts it for a process that was waited for."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes, in which the system counts a process's memory
_STATUS = Path("/proc/self/status")
_FIRST_SPELL, _LONGEST_SPELL = 0.0005, 0.05  # s


class Spent(NamedTuple):
    """What one execution of a stage's commands took.

    `seconds` are of wall time, `cpu_seconds` those of all processes that the commands waited for, in user and system
    mode. `peak_memory` (bytes) is what the largest single one of these processes held in memory at its highest; None
    when it is less than this process has held itself, for then nobody can tell. `exit_status` is that of the last
    command (below 0: minus the signal that ended it), None when the commands were stopped or could not be started;
    `timed_out` says that they were stopped because they took too long.
    """

    seconds: float
    cpu_seconds: float = 0.0
    peak_memory: int | None = None
    exit_status: int | None = None
    timed_out: bool = False


class Meter:
    """Waits for commands, one after the other, and adds up what they used."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._cpu = 0.0
        self._peak: int | None = None

    def poll(self, process: subprocess.Popen[bytes], *, wait: bool = False) -> int | None:
        """Return the exit status of `process`; None while it runs, unless it is to be waited for."""
        if process.returncode is None:
            try:
                number, status, used = os.wait4(process.pid, 0 if wait else os.WNOHANG)
            except ChildProcessError:  # the system forgets children at once where SIGCHLD is ignored
                return process.poll()
            if number:
                process.returncode = os.waitstatus_to_exitcode(status)
                self._add(used)
        return process.returncode

    def wait(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        """Wait until `process` has ended, at most for `seconds`."""
        until, spell = time.monotonic() + seconds, _FIRST_SPELL
        while self.poll(process) is None and (left := until - time.monotonic()) > 0:
            time.sleep(min(spell, left))
            spell = min(2 * spell, _LONGEST_SPELL)

    def spent(self, exit_status: int | None, *, timed_out: bool = False) -> Spent:
        """Return what was used so far."""
        return Spent(time.monotonic() - self._started, self._cpu, self._peak, exit_status, timed_out)

    def _add(self, used: resource.struct_rusage) -> None:
        self._cpu += used.ru_utime + used.ru_stime
        # A process begins with its parent's memory: of one that needed less, the system tells what the parent had.
        peak = used.ru_maxrss * _UNIT
        if peak > _own_peak():
            self._peak = max(peak, self._peak or 0)


def _own_peak() -> int:
    """Return what this process has held in memory at its highest (bytes)."""
    with suppress(OSError, StopIteration, ValueError, IndexError):
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT
