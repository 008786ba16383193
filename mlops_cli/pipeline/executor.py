"""Run a stage's commands: a shell, a process group of their own, their output shown as it comes and kept in a log."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mlops_cli.files import translate_os_error

Write = Callable[[bytes], object]

# The command waits for a line: it begins once its process group is on record, and never if we are killed before that.
_GATE = ("/bin/sh", "-c", 'read -r go && exec /bin/sh -c "$0" </dev/null')
_PROCESSES = Path("/proc")
_GROUP, _SESSION, _STARTED = 2, 3, 19  # where `_stat` has them
_GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.02
_IDLE_SECONDS = 0.2
_LEFT_BEHIND_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Group:
    """A process group, with the start of its leader, which tells it from a later one with the same number."""

    number: int
    started: str


def execute(
    commands: Sequence[str],
    *,
    folder: Path,
    environ: Mapping[str, str],
    log: Path,
    output: Write,
    started: Callable[[Group], object],
    left_behind: Callable[[str], object] = lambda _: None,
) -> int:
    """Run `commands` one after the other in `folder` until one fails; returns the exit status (below 0: a signal).

    Standard output and standard error go to `output` and to the file `log`; standard input is empty. `started` is
    called before a command begins, `left_behind` with a command that ended before what it started, which is then
    stopped. When the caller is interrupted, the commands are stopped with all they started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab", buffering=0) as kept:
        tee = _Tee([kept.write, output])
        for command in commands:
            status = _run(command, folder, environ, tee.write, started, left_behind)
            if status:
                return status
    return 0


class _Tee:
    """Several sinks; one that fails (a closed terminal, a full disk) is dropped, since the command must not wait."""

    def __init__(self, sinks: Sequence[Write]) -> None:
        self._sinks = list(sinks)

    def write(self, data: bytes) -> None:
        for sink in tuple(self._sinks):
            try:
                sink(data)
            except (OSError, ValueError):
                self._sinks.remove(sink)


def _run(
    command: str,
    folder: Path,
    environ: Mapping[str, str],
    output: Write,
    started: Callable[[Group], object],
    left_behind: Callable[[str], object],
) -> int:
    try:
        process = subprocess.Popen(
            [*_GATE, command],
            cwd=folder,
            env=dict(environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise translate_os_error(error, f"start `{command}` in `{folder}`") from error
    ended = threading.Event()
    reader = threading.Thread(target=_forward, args=(process.stdout, output, ended), daemon=True)
    with process:
        try:
            reader.start()
            started(Group(process.pid, start_of(process.pid)))
            _open_gate(process)
            status = _wait(process, reader)
            if _end_rest(process.pid):
                left_behind(command)
            return status
        except BaseException:
            try:
                stop_group(process.pid, reap=process.poll)
            finally:  # a second interrupt may come before `stop_group` has begun
                _kill_group(process.pid)
            raise
        finally:
            ended.set()
            reader.join()


def _open_gate(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin:
        process.stdin.write(b"go\n")


def _wait(process: subprocess.Popen[bytes], reader: threading.Thread) -> int:
    """Wait for the command, in short spells: one long one would not end for a signal that the other thread is given."""
    while (status := process.poll()) is None:
        if reader.is_alive():
            reader.join(_IDLE_SECONDS)  # it ends at once when the command does
        else:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_IDLE_SECONDS)
    return status


def _end_rest(number: int) -> bool:
    """End what is left of a group whose leader has ended, after a moment to end by itself; say whether it was needed.

    Nobody waits for such a process: it would go on writing to outputs that are on record.
    """
    deadline = time.monotonic() + _LEFT_BEHIND_SECONDS
    while _is_there(number):
        if time.monotonic() > deadline:
            stop_group(number)
            return True
        time.sleep(_POLL_SECONDS)
    return False


def _is_there(number: int) -> bool:
    try:
        os.killpg(number, 0)  # nearly always there is no such group, which this finds out at once
        return _has_living(number)
    except (ProcessLookupError, PermissionError):
        return False


def _forward(stream: IO[bytes], output: Write, ended: threading.Event) -> None:
    """Pass on what comes, until the end; of a process left behind that keeps the pipe open, not for long."""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        until = float("inf")
        while time.monotonic() < until:
            if not selector.select(timeout=_IDLE_SECONDS):
                if ended.is_set():
                    return
                continue
            data = os.read(stream.fileno(), 65536)
            if not data:
                return
            output(data)
            if until == float("inf") and ended.is_set():
                until = time.monotonic() + _LEFT_BEHIND_SECONDS


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


def _kill_group(number: int) -> None:
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
