"""Renaming what is in the workspace, so that the state index knows it by its new path and nothing is read again.

A folder's files do not change when it is renamed: their rows move along. A lone file does: renaming sets its ctime, by
which a later edit must show. Its row is written anew only if nobody can have written to the file between the look
that the old row is about and the new one: a lease, which the system grants on a file that nobody has open for writing,
makes whoever would wait until the clock has ticked.
"""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mlops_cli.store.links import rename_new
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.state import Clock, Row, State

_PATIENCE_SECONDS = 0.1  # for a tick of the clock: with a coarser one, the file is read again
_POLL_SECONDS = 0.002
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def rename(project: Project, old: str, new: str) -> None:
    """Rename `old`, which is there, to `new` (project paths); FileExistsError or another OSError, with nothing done."""
    source, target = str(project.root / old), str(project.root / new)
    prefix = os.fsencode(f"{project.prefix}/" if project.prefix else "")
    before, after = prefix + os.fsencode(old), prefix + os.fsencode(new)
    state = State.open(project.local / "state.db", project.git.name)
    try:
        info = os.lstat(source)
        if stat.S_ISDIR(info.st_mode):
            rename_new(source, target)
            state.move_folder(before, after)
        elif stat.S_ISREG(info.st_mode):
            _rename_file(project, state, (source, target), (before, after))
        else:  # a link to an object: its row is about the object
            rename_new(source, target)
            _move_row(state, before, after, state.row(*_split(before)))
    finally:
        state.close()


def _rename_file(project: Project, state: State, places: tuple[str, str], keys: tuple[bytes, bytes]) -> None:
    row = state.row(*_split(keys[0]))
    with _leased(places[0]) as descriptor:
        known = row is not None and descriptor is not None and row.matches(os.fstat(descriptor))
        rename_new(*places)
        if row is not None and descriptor is not None and known:
            _move_row(state, *keys, _settle(project, descriptor, row))


def _settle(project: Project, descriptor: int, row: Row) -> Row | None:
    """Return the row of a file that was renamed, once a later edit must show in its times; None when it takes long."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        clock = Clock.read(project.local)
        now = os.fstat(descriptor)
        if clock.is_settled(now):
            same = (now.st_size, now.st_mtime_ns, now.st_ino) == (row.size, row.mtime_ns, row.inode)
            return row._replace(ctime_ns=now.st_ctime_ns) if same else None
        time.sleep(_POLL_SECONDS)
    return None


def _move_row(state: State, before: bytes, after: bytes, row: Row | None) -> None:
    if row is not None:
        (old, name), (new, base) = _split(before), _split(after)
        state.save([(old, {}, [name]), (new, {base: row}, [])])


def _split(path: bytes) -> tuple[bytes, bytes]:
    folder, _, name = path.rpartition(b"/")
    return folder, name


@contextmanager
def _leased(path: str) -> Iterator[int | None]:
    """Yield the open file at `path` while nobody can open it for writing; None where that cannot be had."""
    descriptor = -1
    try:
        with suppress(OSError):
            descriptor = os.open(path, _FLAGS)
        yield descriptor if descriptor >= 0 and _lease(descriptor) else None
    finally:
        if descriptor >= 0:
            os.close(descriptor)  # which ends the lease


def _lease(descriptor: int) -> bool:
    """Ask for a lease; who opens the file for writing waits for its end, and we get a signal that is ignored."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError:
        return False
    return True
