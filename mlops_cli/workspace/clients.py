"""Which projects use a cache, noted in `<cache>/projects/`: a collection must know what every one of them needs.

A project notes itself when it first uses a cache outside its own Git directory. A cache inside one serves that clone,
which needs no note, and perhaps others. What counts is where folders really are: a link may lead out of a clone.
"""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mlops_cli.errors import OutsideError, UsageError
from mlops_cli.files import TEMPORARY_PREFIX, translate_os_error
from mlops_cli.hashing import fingerprint
from mlops_cli.store.cache import Cache


class Registered(NamedTuple):
    """A project that uses a cache outside its own Git directory: its root, its clone's Git directory, its note."""

    root: str
    git_dir: str
    note: Path


def register(cache: Cache, root: Path, common_dir: Path) -> None:
    """Note at the cache that the project at `root` uses it, if it may be written to.

    A cache inside the clone needs no note.
    """
    inside = Path(os.path.realpath(cache.root)).is_relative_to(os.path.realpath(common_dir))
    if inside or not os.access(cache.root, os.W_OK):
        return
    path = _notes(cache) / f"{fingerprint(os.fsdecode(root))}.json"
    data = json.dumps({"root": str(root), "git": str(common_dir)}).encode()
    try:
        if path.is_file() and path.read_bytes() == data:
            return
        cache.write_file(path, data)
    except OSError as error:
        raise translate_os_error(error, f"register this project at the cache `{cache.root}`") from error


def list_registered(cache: Cache) -> list[Registered]:
    """Return the projects that are noted at a cache; OutsideError for a note that cannot be read."""
    found = []
    if not _notes(cache).is_dir():
        return []
    for path in sorted(_notes(cache).iterdir()):
        if path.name.startswith(TEMPORARY_PREFIX):
            continue
        try:
            value = json.loads(path.read_bytes())
            found.append(Registered(str(value["root"]), str(value["git"]), path))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutsideError(
                f"`{path}` should name a project that uses this cache, and cannot be read",
                hint="remove it, then run any mlx command that writes in that project: it is noted again",
            ) from error
    return found


def find_owner(cache: Cache) -> Path | None:
    """Return the Git directory that a cache lies in, None when it lies in none: that clone needs it, noted or not."""
    for folder in Path(os.path.realpath(cache.root)).parents:
        if (folder / "HEAD").is_file() and (folder / "objects").is_dir() and (folder / "refs").is_dir():
            return folder
    return None


def _notes(cache: Cache) -> Path:
    return cache.root / "projects"


def forget(cache: Cache, root: Path, *, dry_run: bool = False) -> None:
    """Take the note of the project at `root` away; UsageError when there is none, or when the project is there."""
    registered = list_registered(cache)
    found = [project for project in registered if project.root == str(root)]
    if not found:
        known = ", ".join(f"`{project.root}`" for project in registered) or "none"
        raise UsageError(f"no project at `{root}` uses this cache", hint=f"those that do: {known}")
    if is_there(found[0]):
        raise UsageError(f"the project `{root}` is still there", hint="what it needs stays: `rm -r` it first")
    if not dry_run:
        with suppress(FileNotFoundError):
            found[0].note.unlink()


def is_there(project: Registered) -> bool:
    """Say whether a project's clone is on disk; OutsideError when nobody may look."""
    head = f"{project.git_dir}/HEAD"
    try:
        return stat.S_ISREG(os.stat(head).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        doing = f"look at the project `{project.root}`, which uses this cache"
        raise translate_os_error(error, doing) from error
