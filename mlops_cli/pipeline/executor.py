"""Run a stage's commands: a shell, a process group of their own, their output shown as it comes and kept in a log."""

from __future__ import annotations

import os
import selectors
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO

from mlops_cli.errors import MlxError, OutsideError
from mlops_cli.files import translate_os_error
from mlops_cli.pipeline.processes import Group, is_there, kill_group, start_of, stop_group
from mlops_cli.pipeline.usage import Meter, Spent


class TimedOut(Exception):
    """The commands took longer than they may."""


class Cancelled(Exception):
    """The commands were stopped because the run is being ended."""


Write = Callable[[bytes], object]

# The command waits for a line: it begins once its process group is on record, and never if we are killed before that.
_GATE = ("/bin/sh", "-c", 'read -r go && exec /bin/sh -c "$0" </dev/null')
_POLL_SECONDS = 0.02
_IDLE_SECONDS = 0.2
_LEFT_BEHIND_SECONDS = 1.0


def execute(
    commands: Sequence[str],
    *,
    folder: Path,
    environ: Mapping[str, str],
    log: Path,
    output: Write,
    started: Callable[[Group], object],
    left_behind: Callable[[], object] = lambda: None,
    timeout: float | None = None,
    cancelled: threading.Event | None = None,
    spent: Callable[[Spent], object] | None = None,
) -> int:
    """Run `commands` one after the other in `folder` until one fails; returns the exit status (below 0: a signal).

    Standard output and standard error go to `output` and to the file `log`; standard input is empty. `started` is
    called before a command begins, `left_behind` when one ended before what it had started, which is then stopped. When
    the caller is interrupted, or `cancelled` is set, the commands are stopped with all they started. `spent` is told
    what they used, however they ended. TimedOut when they take longer than `timeout` (s) together, Cancelled when they
    were.
    """
    end = float("inf") if timeout is None else time.monotonic() + timeout
    meter, status, timed_out = Meter(), None, False
    with _open_log(log) as kept:
        tee = _Tee([kept.write, output])
        try:
            for command in commands:
                if cancelled is not None and cancelled.is_set():
                    raise Cancelled
                status = None
                watch = partial(_refuse_late, end, cancelled)
                status = _run(command, folder, environ, tee.write, started, left_behind, watch, meter)
                if status:
                    return status
        except TimedOut:
            timed_out = True
            raise
        finally:
            if spent is not None:
                spent(meter.spent(status, timed_out=timed_out))
    return 0


def _open_log(log: Path) -> IO[bytes]:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return log.open("ab", buffering=0)
    except OSError as error:
        raise translate_os_error(error, f"write the log `{log}`") from error


def no_thread(doing: str) -> MlxError:
    """Return what to tell when the system gives no thread for running a stage."""
    return OutsideError(
        f"cannot run `{doing}`: the system gives no more threads",
        hint="`mlx run` with a smaller `-j`, or raise the limit: `ulimit -u`",
    )


def _refuse_late(end: float, cancelled: threading.Event | None) -> float:
    """Return how many seconds there are left, at most those of a spell of waiting; TimedOut, Cancelled."""
    if cancelled is not None and cancelled.is_set():
        raise Cancelled
    left = end - time.monotonic()
    if left <= 0:
        raise TimedOut
    return min(left, _IDLE_SECONDS)


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
    left_behind: Callable[[], object],
    watch: Callable[[], float],
    meter: Meter,
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
            try:
                reader.start()
            except RuntimeError as error:
                raise no_thread(command) from error
            started(Group(process.pid, start_of(process.pid)))
            _open_gate(process)
            status = _wait(process, reader, watch, meter)
            if _end_rest(process.pid):
                left_behind()
            return status
        except BaseException:
            try:
                stop_group(process.pid, reap=partial(meter.poll, process))
            finally:  # a second interrupt may come before `stop_group` has begun
                kill_group(process.pid)
                meter.poll(process, wait=True)
            raise
        finally:
            ended.set()
            if reader.ident is not None:
                reader.join()


def _open_gate(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin:
        process.stdin.write(b"go\n")


def _wait(process: subprocess.Popen[bytes], reader: threading.Thread, watch: Callable[[], float], meter: Meter) -> int:
    """Wait for the command, in short spells: one long one would not end for a signal that the other thread is given."""
    while (status := meter.poll(process)) is None:
        spell = watch()
        if reader.is_alive():
            reader.join(spell)  # it ends at once when the command does
        else:
            meter.wait(process, spell)
    return status


def _end_rest(number: int) -> bool:
    """End what is left of a group whose leader has ended, after a moment to end by itself; say whether it was needed.

    Nobody waits for such a process: it would go on writing to outputs that are on record.
    """
    deadline = time.monotonic() + _LEFT_BEHIND_SECONDS
    while is_there(number):
        if time.monotonic() > deadline:
            stop_group(number)
            return True
        time.sleep(_POLL_SECONDS)
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
