"""What stages that run have to themselves: nobody else touches what they make, or replaces what they read.

A reservation is a file that tells of one stage, and whose lock the process that runs it holds: `kill -9` ends it. It is
made and removed with the checkout held, so whoever holds the checkout can rely on what there is; the commands
themselves run while others hold it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mlops_cli.errors import LockedError
from mlops_cli.files import is_named, translate_os_error
from mlops_cli.progress import Reporter
from mlops_cli.words import NAMED, naming
from mlops_cli.workspace.project import Project, file_name
from mlops_cli.workspace.snapshot import Tracked

_SUFFIX = ".lock"


class Reservation(NamedTuple):
    """A stage that a process runs: the paths (of the project) that it reads, those that it makes, and its mutexes."""

    stage: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    process: int
    mutex: tuple[str, ...] = ()

    def makes(self, path: str) -> bool:
        """Say whether `path` is, holds or lies in something that the stage makes."""
        return any(_overlap(path, other) for other in self.writes)

    def uses(self, path: str) -> bool:
        """Say whether `path` is, holds or lies in something that the stage makes or reads."""
        return self.makes(path) or any(_overlap(path, other) for other in self.reads)


class Reservations:
    """Those that this process has in one checkout, by stage; the checkout must be held to take or give back one."""

    def __init__(self, project: Project) -> None:
        self._folder = _folder(project)
        self._own: dict[str, int] = {}

    def take(self, stage: str, reads: Sequence[str], writes: Sequence[str], mutex: Sequence[str] = ()) -> None:
        """Reserve what a stage reads and makes, of which others must have reserved nothing."""
        value = {"stage": stage, "reads": reads, "writes": writes, "process": os.getpid(), "mutex": mutex}
        told = json.dumps(value)
        path = self._path(stage)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._own[stage] = _open_locked(path)
            os.ftruncate(self._own[stage], 0)
            os.pwrite(self._own[stage], told.encode(), 0)
        except OSError as error:
            self.give_back(stage)
            raise translate_os_error(error, f"write `{path}`") from error

    def give_back(self, stage: str) -> None:
        """End the reservation of a stage, if there is one."""
        descriptor = self._own.pop(stage, None)
        if descriptor is not None:
            with suppress(OSError):
                self._path(stage).unlink()
            os.close(descriptor)

    def others(self) -> tuple[Reservation, ...]:
        """Return those of other processes."""
        return _find(self._folder, {file_name(stage) + _SUFFIX for stage in self._own})

    def _path(self, stage: str) -> Path:
        return self._folder / f"{file_name(stage)}{_SUFFIX}"


def find_reservations(project: Project) -> tuple[Reservation, ...]:
    """Return the stages of this checkout that are being run, by this process too."""
    return _find(_folder(project))


def leave_in_use(
    project: Project, chosen: Sequence[tuple[Tracked, str]], targets: Sequence[str], reporter: Reporter
) -> tuple[tuple[Tracked, str], ...]:
    """Return those of `chosen` (tracked paths and the parts meant) that no stage uses which is being run.

    What was not asked for by name (no `targets`) is left, and told; LockedError for what was.
    """
    running = find_reservations(project)
    if not running:
        return tuple(chosen)
    used = {entry.path: by for entry, part in chosen if (by := _user(running, _below(entry.path, part)))}
    if used and targets:
        refuse_in_use(project, used)
    if used:
        reporter.note(f"left as they are, for stages use them that are being run: {naming(list(used)[:NAMED])}")
    return tuple((entry, part) for entry, part in chosen if entry.path not in used)


def refuse_in_use(project: Project, paths: Iterable[str]) -> None:
    """Raise LockedError when a stage that is being run makes or reads something at one of `paths`."""
    running = find_reservations(project)
    for path in paths if running else ():
        if by := _user(running, path):
            does = "makes" if by.makes(path) else "reads"
            raise LockedError(
                f"stage `{by.stage}`, which process {by.process} runs, {does} `{path}`",
                hint="wait for it to finish, or stop it",
            )


def _user(running: Sequence[Reservation], path: str) -> Reservation | None:
    return next((each for each in running if each.uses(path)), None)


def _below(path: str, part: str) -> str:
    return f"{path}/{part}" if part else path


def _folder(project: Project) -> Path:
    return project.local / "reservations" / project.checkout_key


def _find(folder: Path, passing: Iterable[str] = ()) -> tuple[Reservation, ...]:
    """Return the reservations in `folder` whose processes live, but for the files to be passed over."""
    try:
        names = sorted({*os.listdir(folder)} - {*passing})
    except FileNotFoundError:
        return ()
    return tuple(found for name in names if name.endswith(_SUFFIX) and (found := _read(folder / name)) is not None)


def _read(path: Path) -> Reservation | None:
    """Return what a file reserves; None when its process is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _parse(descriptor, path)
    finally:
        os.close(descriptor)
    return None


def _parse(descriptor: int, path: Path) -> Reservation:
    try:
        told = json.loads(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
        reads, writes, mutex = (tuple(told[key]) for key in ("reads", "writes", "mutex"))
        return Reservation(str(told["stage"]), reads, writes, int(told["process"]), mutex)
    except (ValueError, KeyError, TypeError):  # it is just being written: whoever holds the checkout never sees that
        return Reservation(path.name.removesuffix(_SUFFIX), (), (), 0)


def _open_locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # somebody may just be looking whether it is held
        except BaseException:
            os.close(descriptor)
            raise
        if is_named(descriptor, path):
            return descriptor
        os.close(descriptor)


def _overlap(one: str, other: str) -> bool:
    """Say whether one path is or holds the other; the empty one is the project."""
    return one == other or not one or not other or one.startswith(other + "/") or other.startswith(one + "/")
