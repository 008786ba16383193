"""The runs that this clone remembers: a folder each, with the logs of its stages and its record.

The newest are kept, as many as `KEPT_RUNS` and, together, as much as `KEPT_BYTES`; one that is on is never removed.
`times.json` beside them outlives them: how long each stage took when it last ran here.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from mlops_cli.files import write_atomic
from mlops_cli.pipeline.plan import Action, Decision
from mlops_cli.pipeline.run_record import RECORD, Outcome, RunFacts, StageRun, log_file, project_of, read_record
from mlops_cli.workspace.project import Project, file_name

KEPT_RUNS = 100
KEPT_BYTES = 2 << 30
_RUN_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}\Z")
_MOST_TIMES = 20_000
_LARGEST_RECORD = 64 << 20  # bytes
_DAY = 86_400.0  # s


class Run(NamedTuple):
    """One run that is remembered."""

    id: str
    folder: Path
    facts: RunFacts

    def log(self, stage: str) -> Path:
        """Return the file with what the commands of a stage wrote; it need not be there."""
        return log_file(self.folder, stage)


def runs_folder(project: Project) -> Path:
    """Return the folder that has a folder for each run."""
    return project.local / "runs"


def list_runs(runs: Path, prefix: str | None = None) -> list[Path]:
    """Return the folders of the runs that are remembered, the newest first.

    With `prefix`, of the project that lies there in the repository, and those that do not tell theirs.
    """
    try:
        with os.scandir(runs) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    folders = [runs / name for name in sorted(names, reverse=True)]
    return folders if prefix is None else [folder for folder in folders if _is_of(folder, prefix)]


def read_run(folder: Path) -> Run:
    """Return a run as its record tells it; of one without a record, that its stages have logs."""
    try:
        with (folder / RECORD).open("rb") as file:
            on = _is_locked(file.fileno())  # asked first: what is read then is not older than the answer
            facts = read_record(file.read(_LARGEST_RECORD), is_on=on)
    except OSError:
        stages = sorted(unquote(name.removesuffix(".log")) for name in _names(folder) if name.endswith(".log"))
        facts = RunFacts(None, "", Outcome.UNKNOWN, None, tuple(StageRun(stage) for stage in stages))
    return Run(folder.name, folder, facts)


def runs_of(project: Project) -> list[Path]:
    """Return the folders of the runs of `project` that are remembered, in all its worktrees, the newest first."""
    return list_runs(runs_folder(project), project.prefix)


def find_latest(folders: Iterable[Path], stage: str) -> Run | None:
    """Return the first of the runs in `folders` in which the commands of the stage at an address wrote a log."""
    found = next((folder for folder in folders if log_file(folder, stage).is_file()), None)
    return None if found is None else read_run(found)


def is_writing(run: Run, stage: str) -> bool:
    """Say whether the commands of a stage may write more to its log, as far as `run` knows."""
    return any(each.stage == stage and each.outcome is Outcome.RUNNING for each in run.facts.stages) or (
        run.facts.outcome is Outcome.RUNNING and _will_try_again(run, stage)
    )


def _will_try_again(run: Run, stage: str) -> bool:
    """Say whether the last attempt at a stage failed, and is not the last that it has."""
    last = next((each for each in reversed(run.facts.stages) if each.stage == stage), None)
    return last is not None and last.again


def prune(runs: Path, *, kept_runs: int = KEPT_RUNS, kept_bytes: int = KEPT_BYTES) -> None:
    """Remove the oldest runs beyond what is kept; the newest stays, however large."""
    size = 0
    folders = [folder for folder in list_runs(runs) if _RUN_ID.match(folder.name)]
    for number, folder in enumerate(folders):
        size += _size(folder)
        if number and (number >= kept_runs or size > kept_bytes) and not _may_be_on(folder):
            shutil.rmtree(folder, ignore_errors=True)


def read_times(runs: Path, prefix: str = "") -> dict[str, float]:
    """Return how long the commands of each stage (by address) took when they last ran here, in seconds."""
    with suppress(OSError, ValueError, RecursionError):
        value = json.loads(_times_file(runs, prefix).read_bytes())
        times = value.get("seconds") if isinstance(value, dict) else None
        if isinstance(times, dict):
            return {stage: float(seconds) for stage, seconds in times.items() if _is_time(seconds)}
    return {}


def write_times(runs: Path, prefix: str, seconds: Mapping[str, float]) -> None:
    """Add to what `read_times` returns. Of two runs that end at once one may be forgotten: it is what was, about."""
    if not seconds:
        return
    times = read_times(runs, prefix)
    for stage, took in seconds.items():
        times.pop(stage, None)
        times[stage] = round(took, 3)  # at the end: the oldest are dropped first
    kept = dict(list(times.items())[-_MOST_TIMES:])
    write_atomic(_times_file(runs, prefix), json.dumps({"mlx": 1, "seconds": kept}).encode(), durable=False)


def _times_file(runs: Path, prefix: str) -> Path:
    return runs / (f"times-{file_name(prefix)}.json" if prefix else "times.json")


def saved_by(decisions: Iterable[Decision], times: Mapping[str, float]) -> dict[str, float]:
    """Return how long what was not executed took when it last was (s), by stage, as far as that is known."""
    idle = [decision.stage for decision in decisions if decision.action is not Action.RUN]
    return {stage.address: times[stage.address] for stage in idle if stage.address in times and not stage.is_off}


def follow(log: Path, is_on: Callable[[], bool], *, start: int, pause: Callable[[], object]) -> Iterator[bytes]:
    """Yield what is in `log` from byte `start`, then what is added, until `is_on` says no and there is no more.

    A `pause` is taken whenever nothing has come.
    """
    with log.open("rb") as file:
        file.seek(start)
        while True:
            on = is_on()
            came = False
            while data := file.read(1 << 16):
                came = True
                yield data
            if not on:
                return
            if not came:
                pause()


def tail_start(log: Path, lines: int) -> int:
    """Return where the last `lines` lines of `log` begin (bytes), having read no more than these."""
    with log.open("rb") as file:
        end = at = file.seek(0, os.SEEK_END)
        if lines <= 0:
            return end
        left = lines + 1  # the newline before the first of them
        while at > 0:
            start = max(0, at - (1 << 16))
            file.seek(start)
            block = file.read(at - start)
            if at == end and not block.endswith(b"\n"):
                left -= 1  # a line that has no end yet
            while (found := block.rfind(b"\n")) >= 0:
                left -= 1
                if not left:
                    return start + found + 1
                block = block[:found]
            at = start
    return 0


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def _is_of(folder: Path, prefix: str) -> bool:
    try:
        with (folder / RECORD).open("rb") as file:
            return project_of(file.read(4096)) == prefix
    except OSError:
        return True


def _may_be_on(folder: Path) -> bool:
    try:
        with (folder / RECORD).open("rb") as file:
            return _is_locked(file.fileno())
    except OSError:  # of a command that keeps no record: when it last wrote tells
        now = time.time()
        return any(now - entry.stat().st_mtime < _DAY for entry in _entries(folder))


def _size(folder: Path) -> int:
    return sum(entry.stat(follow_symlinks=False).st_size for entry in _entries(folder))


def _names(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder)]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12
