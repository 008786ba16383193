"""Writes the record of a run while it goes on, and passes on what it hears."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlops_cli.errors import MlxError
from mlops_cli.files import write_all
from mlops_cli.pipeline.manner import Listener, StageResult
from mlops_cli.pipeline.plan import Action, Decision
from mlops_cli.pipeline.run_history import prune, write_times
from mlops_cli.pipeline.run_record import RECORD, VERSION, Outcome, line
from mlops_cli.pipeline.usage import Spent


@contextmanager
def recorded(listener: Listener, folder: Path, prefix: str = "", doing: str = "mlx run") -> Iterator[Recorder]:
    """Yield a listener that tells `listener` everything, and keeps a record of it in `folder`, the run's own.

    `prefix` is where the project lies in its repository, of which all have their runs side by side. A run that does
    nothing but skip leaves none. That no record can be written stops no run.
    """
    recorder = Recorder(listener, folder, prefix, doing)
    try:
        yield recorder
    except KeyboardInterrupt:
        recorder.close(Outcome.INTERRUPTED)
        raise
    except BaseException:
        recorder.close(Outcome.FAILED)
        raise
    recorder.close(Outcome.DONE)


class Recorder:
    """A listener of a run that writes its record; `spent` has what the last attempt at each stage took."""

    def __init__(self, listener: Listener, folder: Path, prefix: str, doing: str) -> None:
        self.spent_by: dict[str, Spent] = {}
        self._listener = listener
        self._folder = folder
        self._prefix = prefix
        self._doing = doing
        self._started = time.monotonic()
        self._file: int | None = None
        self._tries: dict[str, int] = {}
        self._retries: dict[str, int] = {}  # that the stages have
        self._open: dict[str, float] = {}  # attempts that have begun and not ended, with when (monotonic)
        self._seconds: dict[str, float] = {}  # of what was executed

    def expect(self, stages: int) -> None:
        """Pass it on."""
        self._listener.expect(stages)

    def begin(self, decision: Decision) -> None:
        """Note that an attempt at a stage begins."""
        if decision.action is not Action.SKIP:
            stage = decision.stage.address
            self.spent_by.pop(stage, None)
            self._tries[stage] = self._tries.get(stage, 0) + 1
            self._retries[stage] = decision.stage.conduct.retries
            self._open[stage] = time.monotonic()
            self._write(
                "begin",
                stage=stage,
                action=decision.action.value,
                reasons=list(decision.reasons),
                attempt=self._tries[stage],
            )
        self._listener.begin(decision)

    def write(self, stage: str, data: bytes) -> None:
        """Pass it on: what a command writes is kept in its log."""
        self._listener.write(stage, data)

    def spent(self, stage: str, spent: Spent) -> None:
        """Remember what the commands of a stage took; called from another thread."""
        self.spent_by[stage] = spent
        self._listener.spent(stage, spent)

    def ended(self, stage: str) -> None:
        """Pass it on."""
        self._listener.ended(stage)

    def failed(self, stage: str, error: MlxError) -> None:
        """Note that an attempt at a stage failed."""
        spent = self.spent_by.get(stage)
        is_late = spent is not None and spent.timed_out
        self._end(stage, Outcome.TIMED_OUT if is_late else Outcome.FAILED, error.message)
        self._listener.failed(stage, error)

    def done(self, result: StageResult) -> None:
        """Note that a stage is done."""
        stage = result.decision.stage.address
        if result.decision.action is Action.RUN and stage in self.spent_by:
            self._seconds[stage] = self.spent_by[stage].seconds
        self._end(stage, Outcome.DONE)
        self._listener.done(result)

    def wait(self) -> None:
        """Pass it on."""
        self._listener.wait()

    def note(self, message: str) -> None:
        """Pass it on."""
        self._listener.note(message)

    def close(self, outcome: Outcome) -> None:
        """End the record: what has begun and not ended was interrupted."""
        if self._file is None:
            return
        for stage in tuple(self._open):
            self._end(stage, Outcome.INTERRUPTED)
        self._write("close", outcome=outcome.value, seconds=round(time.monotonic() - self._started, 3))
        os.close(self._file)
        self._file = None
        with suppress(OSError):
            write_times(self._folder.parent, self._prefix, self._seconds)
            prune(self._folder.parent)

    def _end(self, stage: str, outcome: Outcome, message: str | None = None) -> None:
        begun = self._open.pop(stage, None)
        if begun is None:  # it was skipped, or refused before it began
            return
        spent = self.spent_by.get(stage)
        seconds = time.monotonic() - begun if spent is None else spent.seconds
        self._write(
            "end",
            stage=stage,
            attempt=self._tries[stage],
            outcome=outcome.value,
            seconds=round(seconds, 3),
            cpu_seconds=None if spent is None else round(spent.cpu_seconds, 3),
            peak_memory=None if spent is None else spent.peak_memory,
            exit_status=None if spent is None else spent.exit_status,
            message=message,
            again=True if message is not None and self._tries[stage] <= self._retries[stage] else None,
        )

    def _write(self, event: str, **facts: object) -> None:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with suppress(OSError):
            if self._file is None:
                self._file = _create(self._folder)
                write_all(self._file, line("run", mlx=VERSION, at=at, doing=self._doing, project=self._prefix or None))
            write_all(self._file, line(event, **facts, at=at))


def _create(folder: Path) -> int:
    """Return a descriptor of a new record, which tells by its lock that the run is on."""
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / RECORD, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    with suppress(OSError):  # a file system without locks: then the run looks like a killed one until it ends
        fcntl.flock(file, fcntl.LOCK_EX)
    return file
