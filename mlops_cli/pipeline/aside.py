"""What a failed run wrote, moved out of the workspace without losing a byte.

It goes to `<git dir>/mlx/failed/<checkout>/<stage>/`, which holds the last failure; what may be the user's own (a run
was killed, and someone may have written since) goes to a folder that nothing replaces. Files that `.mlxignore` leaves
out were never the stage's: they stay where they are.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain, count
from pathlib import Path

from mlops_cli.files import TEMPORARY_PREFIX
from mlops_cli.workspace.ignore import IgnoreRules, rules_above
from mlops_cli.workspace.project import Project, file_name

KILLED = "~killed"  # ends the name of a folder whose bytes may be the user's; no stage's name has it


def empty_folder(project: Project, stage: str, *, killed: bool) -> Path:
    """Return a place for what a failed run of `stage` wrote: nothing is there.

    It is the one of the failure before, whose bytes go; with `killed` one that no failure after it takes.
    """
    folder = project.local / "failed" / project.checkout_key
    if killed:
        return unused(folder / f"{file_name(stage)}{KILLED}")
    aside = folder / file_name(stage)
    with suppress(OSError):
        open_up(aside)
        shutil.rmtree(aside)
    return unused(aside)  # it could not be removed: better two than a mix


def set_aside(project: Project, paths: Iterable[str], folder: Path) -> None:
    """Move what is at `paths` (relative to the project) out of the workspace, to `folder`.

    OSError when the system refuses; what was moved by then is in the folder.
    """
    for path in paths:
        _move(project.root, path, folder / path, rules_above(project.root, path))


def unused(path: Path) -> Path:
    """Return `path`, or a name beside it that nothing has."""
    names = (path.with_name(f"{path.name}~{number}") for number in count(2))
    return next(place for place in chain([path], names) if not os.path.lexists(place))


def open_up(path: Path) -> None:
    """Let the owner read, write and enter every folder at and below `path`, so that what is in them can be moved."""
    if path.is_symlink() or not path.is_dir():
        return
    _open_folder(path)
    for name, folders, _ in os.walk(path):
        for folder in folders:
            _open_folder(Path(name, folder))


def _open_folder(path: Path) -> None:
    mode = path.lstat().st_mode
    if stat.S_ISDIR(mode) and mode & stat.S_IRWXU != stat.S_IRWXU:
        path.chmod(stat.S_IMODE(mode) | stat.S_IRWXU)


def _move(root: Path, path: str, target: Path, rules: IgnoreRules) -> bool:
    """Move `path` to `target`, without what is left out; returns whether nothing of it is left."""
    place = root / path
    if place.is_symlink() or not place.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(place, target)
        return True
    _open_folder(place)
    target.mkdir(parents=True, exist_ok=True)
    own, gone = rules.enter(root, path), True
    for there in sorted(place.iterdir()):
        child = f"{path}/{there.name}"
        is_folder = there.is_dir() and not there.is_symlink()
        if there.name.startswith(TEMPORARY_PREFIX) or own.hides(child, is_folder=is_folder):
            gone = False
        else:
            gone = _move(root, child, target / there.name, own) and gone
    if gone:
        place.rmdir()
    return gone
