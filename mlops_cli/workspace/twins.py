"""Names that a file system takes for one another: `A.txt` and `a.txt`, or two spellings of one accented letter.

Where it does, one of the two would end up in the other's place, so both are refused before anything is written.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from mlops_cli.errors import UsageError
from mlops_cli.files import folders_above


def folds_names(root: Path) -> bool:
    """Say whether the file system of the project at `root` takes upper and lower case for the same."""
    return os.path.lexists(root / ".MLX")


def refuse_twins(paths: Iterable[bytes]) -> None:
    """Raise UsageError when two of `paths`, or folders on the way to them, have names that a file system may fold."""
    seen: dict[str, str] = {}
    for raw in paths:
        path = os.fsdecode(raw)
        for place in (*folders_above(path), path):
            first = seen.setdefault(unicodedata.normalize("NFC", place.casefold()), place)
            if first != place:
                raise UsageError(
                    f"this file system takes `{first}` and `{place}` for the same file",
                    hint="check one of them out by its own path, or give one another name where both can be",
                )
