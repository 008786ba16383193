"""What to do about a record that cannot be read, said the same by whoever stumbles over it."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from mlops_cli.errors import MlxError, RecordError
from mlops_cli.words import word
from mlops_cli.workspace.git import find_checkout, tracked_files
from mlops_cli.workspace.project import find_root

_PLACE = re.compile(r"([^`:]+):\d+: ")  # not what stands in a revision, which cannot be mended


def how_to_mend(error: MlxError, start: Path) -> str | None:
    """Return the hint of an error; a RecordError without one is mended in the file, or taken back from Git.

    `start` is a folder of the project; paths in commands are marked.
    """
    place = _PLACE.match(error.message)
    if error.marked_hint or not isinstance(error, RecordError) or place is None:
        return error.marked_hint
    if not _is_tracked(place[1], start):
        return "mend it there"
    return f"mend it there, or `git restore {word(place[1])}` takes back the committed one"


def _is_tracked(name: str, start: Path) -> bool:
    """Say whether Git tracks the file `name` of the project that `start` is in."""
    with suppress(MlxError):
        checkout = find_checkout(start)
        root = find_root(start, checkout) if checkout else None
        return root is not None and bool(tracked_files(root, [name]))
    return False
