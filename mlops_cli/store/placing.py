"""Files that appear in a folder in one step: made under a temporary name beside it, stamped, then given their name."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import NamedTuple

from mlops_cli.store.links import rename_new
from mlops_cli.store.sources import is_same_file


class Goal(NamedTuple):
    """Where an object is to appear, and as what."""

    path: str
    executable: bool
    dir_fd: int | None
    replace: bool
    hidden: bool = False  # nobody looks there yet: the folder itself gets its name later

    @property
    def mode(self) -> int:
        """The mode to create the file with; the process's umask still takes from it."""
        return 0o777 if self.executable else 0o666


class Placed(NamedTuple):
    """A file as it was just before it got its name, and that name."""

    before: os.stat_result
    goal: Goal
    linked: bool = False  # to the object, whose own times change with that

    def untouched(self) -> os.stat_result | None:
        """Return the file's stat now; None when it is another file, or one that was written to.

        A symlink to an object stands for the object.
        """
        if self.goal.hidden and not self.linked:
            return self.before
        try:
            now = os.stat(self.goal.path, dir_fd=self.goal.dir_fd)
        except OSError:
            return None
        return now if is_same_file(now, self.before) else None


def stamp(file: int | str, dir_fd: int | None = None) -> os.stat_result:
    """Set a new file's mtime to the nanosecond and return its stat.

    The kernel stamps what is written with a clock that ticks every few milliseconds: that alone would not tell our
    bytes from those that somebody else writes over them in the same tick.
    """
    now = time.time_ns()
    with suppress(OSError):  # a file server that lets nobody set times
        os.utime(file, ns=(now, now), dir_fd=dir_fd)
    return os.stat(file, dir_fd=dir_fd)


def settle(temporary: str, goal: Goal) -> None:
    """Give a finished file its name, unless it was made under that."""
    if goal.hidden:
        return
    try:
        if goal.replace:
            os.rename(temporary, goal.path, src_dir_fd=goal.dir_fd, dst_dir_fd=goal.dir_fd)
        else:
            rename_new(temporary, goal.path, dir_fd=goal.dir_fd)
    except BaseException:
        remove(temporary, goal.dir_fd)
        raise
    if goal.replace:
        remove(temporary, goal.dir_fd)  # renaming one name of a file to another name of it does nothing


def remove(path: str, dir_fd: int | None) -> None:
    """Remove a temporary file that is not wanted, if it is there and the system lets us; never an error."""
    with suppress(OSError):
        os.unlink(path, dir_fd=dir_fd)
