"""Where jobs run: what every engine does, and the first one, processes of this machine.

An engine is asked by handle, and may be asked by another process than the one that handed the job over. The result of a
job is on the remote, under the job's key; what an engine keeps is how it went.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Protocol

from mlops_cli.errors import (
    CorruptObject,
    Inconclusive,
    MissingObject,
    MlxError,
    OutsideError,
    StageFailed,
    UsageError,
)
from mlops_cli.files import translate_os_error, write_atomic
from mlops_cli.pipeline.processes import Group, is_running, start_of, stop_group
from mlops_cli.records.jobs import Job


class State(Enum):
    """How a job stands."""

    RUNNING = "running"  # or waiting for its turn
    DONE = "done"
    FAILED = "failed"  # its command, what it needs, or the engine


class Report(NamedTuple):
    """How a job went: whether its result was there already, and the seconds of wall time that it took."""

    reused: bool
    seconds: float


class Executor(Protocol):
    """An engine that runs jobs. OutsideError from every verb when the engine cannot be asked."""

    def submit(self, job: Job) -> str:
        """Hand a job over; return its handle."""

    def poll(self, handle: str) -> State:
        """Return how the job stands."""

    def cancel(self, handle: str) -> None:
        """Stop the job, with all that it started; nothing when it has ended."""

    def logs(self, handle: str, start: int = 0) -> bytes:
        """Return what the job has told from the byte `start` on, some of it if that is much."""

    def collect(self, handle: str) -> Report:
        """Return how a job went that is no more running, and forget it; raise what it failed with."""


_MOST_AT_ONCE = 1 << 20  # bytes of a log
_KEPT_SECONDS = 7 * 24 * 3600
# Its end is on record whoever waits for it, and be it nobody.
_SHELL = '"$@" >result.json 2>errors </dev/null; echo $? >status.new && mv status.new status'
_KINDS: dict[int, type[MlxError]] = {
    1: StageFailed,
    2: UsageError,
    3: Inconclusive,
    4: MissingObject,
    5: CorruptObject,
    6: OutsideError,
}


@dataclass(frozen=True, slots=True)
class LocalExecutor:
    """Runs each job in a process and an empty folder of its own, below `folder`."""

    folder: Path
    environ: Mapping[str, str]

    def submit(self, job: Job) -> str:
        """Hand a job over; return its handle."""
        self._sweep()
        handle = f"{job.key[:12]}-{secrets.token_hex(4)}"
        place = self.folder / handle
        command = [sys.executable, "-m", "mlops_cli", "job", "run", "job.yaml", "--folder", "work", "--json"]
        try:
            place.mkdir(parents=True)
            write_atomic(place / "job.yaml", job.to_bytes())
            process = subprocess.Popen(
                ["/bin/sh", "-c", _SHELL, "sh", *command],
                cwd=place,
                env=dict(self.environ),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            write_atomic(place / "group", json.dumps([process.pid, start_of(process.pid)]).encode())
        except OSError as error:
            raise translate_os_error(error, f"start a job in `{place}`") from error
        process.returncode = 0  # nobody waits for it: whether it runs is asked of the system
        return handle

    def poll(self, handle: str) -> State:
        """Return how the job stands; one whose process is gone without a word has failed."""
        place = self.folder / handle
        with suppress(ChildProcessError):
            os.waitpid(self._group(handle).number, os.WNOHANG)  # a child that has ended counts as there until asked
        for _ in range(2):  # it may end between the two looks
            if (place / "status").is_file():
                return State.DONE if (place / "status").read_text().strip() == "0" else State.FAILED
            if is_running(self._group(handle)):
                return State.RUNNING
        return State.FAILED

    def cancel(self, handle: str) -> None:
        """Stop the job, with all that it started."""
        group = self._group(handle)
        if is_running(group):
            stop_group(group.number, reap=lambda: self.poll(handle))

    def logs(self, handle: str, start: int = 0) -> bytes:
        """Return what the job's command has told from the byte `start` on, at most a megabyte."""
        for log in (self.folder / handle / "work" / "logs").glob("*.log"):  # a job is one stage
            with log.open("rb") as stream:
                stream.seek(start)
                return stream.read(_MOST_AT_ONCE)
        return b""

    def collect(self, handle: str) -> Report:
        """Return how a job went that is no more running, and forget it; raise what it failed with."""
        place = self.folder / handle
        try:
            if self.poll(handle) is not State.DONE:
                raise self._failure(place)
            told = json.loads((place / "result.json").read_bytes())
            return Report(bool(told["reused"]), float(told["seconds"]))
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _sweep(self) -> None:
        """Remove what is left of jobs that ended long ago, and that nobody came for."""
        for place in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
            with suppress(OSError):
                if time.time() - place.stat().st_mtime > _KEPT_SECONDS and self.poll(place.name) is not State.RUNNING:
                    shutil.rmtree(place)

    def _failure(self, place: Path) -> MlxError:
        """Return the error that the job ended with, as its process told it."""
        lines = _last_lines(place / "errors")
        for number in range(len(lines)):
            with suppress(ValueError, KeyError, TypeError):
                told = json.loads("\n".join(lines[number:]))
                return _KINDS.get(told["exit_code"], OutsideError)(told["message"], hint=told["hint"])
        return OutsideError("the process of the job is gone without a word", hint="run it again")

    def _group(self, handle: str) -> Group:
        try:
            number, started = json.loads((self.folder / handle / "group").read_bytes())
            return Group(int(number), str(started))
        except (OSError, ValueError, TypeError) as error:
            raise OutsideError(f"there is no job `{handle}` here", hint="it was collected, or never begun") from error


def _last_lines(log: Path) -> list[str]:
    try:
        return log.read_bytes()[-65536:].decode(errors="replace").splitlines()
    except OSError:
        return []


def open_executor(name: str, folder: Path, environ: Mapping[str, str]) -> Executor:
    """Return the engine that is called `name`, which keeps what it must in `folder`; UsageError for an unknown one."""
    if name != "local":
        raise UsageError(f"there is no executor `{name}`", hint="`local` runs each stage in an empty folder of its own")
    return LocalExecutor(folder, environ)
