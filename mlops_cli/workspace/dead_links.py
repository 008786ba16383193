"""Links into the cache whose object is gone: nothing can be recorded where one is, also not in a dry run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mlops_cli.errors import MissingObject
from mlops_cli.files import list_folder
from mlops_cli.store.links import object_at
from mlops_cli.words import word
from mlops_cli.workspace.ignore import leaves_out


def refuse_dead_links(root: Path, owner: str, part: str) -> None:
    """Raise what storing `part` (empty: all) of the tracked path `owner` would raise for the first dead link in it."""
    for place in _links(str(root / owner / part)):
        path = os.path.relpath(place, root)
        is_dead = object_at(os.fsencode(os.readlink(place))) is not None and not os.path.exists(place)
        if is_dead and not leaves_out(root, path, below=owner):
            raise dead_link(path)


def dead_link(path: str) -> MissingObject:
    """Return what to raise for a link at the project's `path` to an object that is gone."""
    return MissingObject(
        f"`{path}` is a link to an object that is not there",
        hint=f"`mlx checkout {word(path)}` or `mlx pull {word(path)}` brings it back; or delete the link",
    )


def _links(place: str) -> Iterator[str]:
    """Yield `place` if it is a link, and all links below it if it is a folder."""
    if os.path.islink(place):
        yield place
        return
    for entry in list_folder(place):
        if entry.is_symlink():
            yield entry.path
        elif entry.is_dir():
            yield from _links(entry.path)
