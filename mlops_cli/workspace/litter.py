"""Half-written files that a killed command left in the workspace.

They begin with `TEMPORARY_PREFIX` and the number of the process that was writing them. Scans pass over them; the next
command that holds the checkout takes them away, so that Git does not see them either: recovery after a run looks
everywhere, `add` and `checkout` at what they have met on their walk.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from mlops_cli.errors import UsageError
from mlops_cli.files import TEMPORARY_PREFIX
from mlops_cli.workspace import git
from mlops_cli.workspace.folders import Folders
from mlops_cli.workspace.project import Project

_PREFIX = os.fsencode(TEMPORARY_PREFIX)


def sweep(project: Project) -> tuple[str, ...]:
    """Remove the leftovers of processes that are gone; returns their paths. The checkout's lock must be held."""
    removed = []
    patterns = f":(glob)**/{TEMPORARY_PREFIX}*", f":(glob)**/{TEMPORARY_PREFIX}*/**"
    found = dict.fromkeys(_leftover(path) for path in git.untracked_files(project.root, *patterns))
    for path in found:
        if not is_alive(_writer(path.rpartition("/")[2])):
            with suppress(OSError):
                _remove(os.fspath(project.root / path))
                removed.append(path)
    return tuple(removed)


def sweep_folder(folder: Path) -> None:
    """Remove the leftovers of processes that are gone from a folder of mlx's own; failing to is no error."""
    with suppress(OSError):
        for name in os.listdir(folder):
            if name.startswith(TEMPORARY_PREFIX) and not is_alive(_writer(name)):
                with suppress(OSError):
                    _remove(os.fspath(folder / name))


def is_left(name: str) -> bool:
    """Say whether another process left the file of a temporary `name`, and is gone."""
    return _writer(name) != str(os.getpid()) and not is_alive(_writer(name))


def _leftover(path: str) -> str:
    """Return the part of a path that ends with the first temporary name in it."""
    parts = path.split("/")
    first = next(number for number, part in enumerate(parts) if part.startswith(TEMPORARY_PREFIX))
    return "/".join(parts[: first + 1])


def _writer(name: str) -> str:
    return name.removeprefix(TEMPORARY_PREFIX).partition("-")[0]


def beside(project: Project, paths: Iterable[str]) -> Iterator[bytes]:
    """Yield the leftovers in the folders that hold `paths`: no scan of what is tracked sees those."""
    for folder in {path.rpartition("/")[0] for path in paths}:
        with suppress(OSError):
            for name in os.listdir(os.fsencode(project.root / folder)):
                if name.startswith(_PREFIX):
                    yield os.path.join(os.fsencode(folder), name)


def remove_seen(project: Project, paths: Iterable[bytes]) -> None:
    """Remove those of `paths`, found by a scan, that processes left which are gone; failing to is no error."""
    with Folders(project) as folders:
        for path in paths:
            parent, _, name = path.rpartition(b"/")
            if not is_alive(_writer(os.fsdecode(name))):
                with suppress(OSError, UsageError):
                    _remove(os.fsdecode(name), folders.open(parent))


def _remove(name: str, folder: int | None = None) -> None:
    if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        shutil.rmtree(name, dir_fd=folder)
    else:
        os.unlink(name, dir_fd=folder)


def is_alive(pid: str) -> bool:
    """Say whether a process of that number runs; this one does not count, whatever has its number is from before.

    One that has ended and that nobody has asked after yet (a zombie) does not run any more.
    """
    try:
        os.kill(int(pid), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return int(pid) != os.getpid() and not _has_ended(int(pid))


def _has_ended(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            return stream.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except (OSError, IndexError):  # not Linux, or gone by now: the next command asks again
        return False
