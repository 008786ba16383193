"""What to do about a record that cannot be read, said the same by whoever stumbles over it."""

from __future__ import annotations

import os
import re
import shlex
from contextlib import suppress
from pathlib import Path

from mlops_cli.errors import MlxError, RecordError
from mlops_cli.workspace.git import find_checkout, tracked_files
from mlops_cli.workspace.project import find_root

_PLACE = re.compile(r"([^`:]+):\d+: ")  # not what stands in a revision, which cannot be mended


def how_to_mend(error: MlxError, start: Path) -> str | None:
    """Return the hint of an error; a RecordError without one is mended in the file, or taken back from Git.

    Paths are as they are typed in `start`, a folder of the project.
    """
    place = _PLACE.match(error.message)
    if error.hint or not isinstance(error, RecordError) or place is None:
        return error.hint
    path = _tracked_path(place[1], start)
    return f"mend it there, or `git restore {path}` takes back the committed one" if path else "mend it there"


def _tracked_path(name: str, start: Path) -> str | None:
    """Return the project's file `name` as seen from `start`, or None when Git does not track it."""
    with suppress(MlxError):
        checkout = find_checkout(start)
        root = find_root(start, checkout) if checkout else None
        if root is not None and tracked_files(root, [name]):
            return shlex.quote(os.path.relpath(root / name, start))
    return None
