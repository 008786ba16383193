"""Symlinks to objects of a cache: in the workspace they are the user's files."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path

from mlops_cli.hashing import Digest
from mlops_cli.store.links import object_at

_GIT = b".git"


def linked_objects(folder: Path, unreadable: Callable[[str], None], passed: Collection[str] = ()) -> Iterator[Digest]:
    """Yield the object that each symlink below `folder` leads to, in whatever cache.

    Git directories are passed over, and the places `passed` (absolute paths) with all that is below them.
    `unreadable` is told of folders that nobody may look into. Nothing is stat-ed: a million files cost a few seconds.
    """
    left = {os.fsencode(place) for place in passed}
    waiting = [os.fsencode(folder)]
    while waiting:
        place = waiting.pop()
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    if left and entry.path in left:
                        continue
                    if entry.is_symlink():
                        yield from _led_to(entry.path)
                    elif entry.is_dir(follow_symlinks=False) and entry.name != _GIT:
                        waiting.append(entry.path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            unreadable(os.fsdecode(place))


def _led_to(link: bytes) -> Iterator[Digest]:
    with suppress(OSError):  # gone meanwhile
        digest = object_at(os.readlink(link))
        if digest is not None:
            yield digest
