"""The files that a glob matches on disk.

It agrees with `glob_pattern`, opens only folders that can hold a match, does not follow links to folders below `**`,
and passes over what is never an input: Python's bytecode, mlx's own locks and leftovers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

from mlops_cli.files import TEMPORARY_PREFIX
from mlops_cli.records.stages import glob_pattern, has_magic

_NEVER = frozenset({"__pycache__", "mlx.lock", ".git", ".mlx"})


def expand(root: Path, glob: str) -> list[str]:
    """Return the files (and links) below `root` that `glob` matches, sorted; folders do not count."""
    found: set[str] = set()
    waiting = [("", tuple(glob.split("/")))]
    while waiting:
        prefix, parts = waiting.pop()
        matches = _matcher(parts[0])
        last = len(parts) == 1
        if parts[0] == "**" and not last:
            waiting.append((prefix, parts[1:]))
        for entry in _children(root, prefix, parts[0]):
            path = prefix + entry.name
            if not matches(entry.name):
                continue
            if not entry.is_dir():
                found.update([path] if last and (entry.is_file() or entry.is_symlink()) else [])
            elif parts[0] != "**":
                waiting.extend([] if last else [(f"{path}/", parts[1:])])
            elif not entry.is_symlink():
                waiting.append((f"{path}/", parts))
    return sorted(found)


def file_pattern(glob: str) -> re.Pattern[str]:
    """Return the pattern of the files that `glob` matches: `a/**` is every file below `a`, not `a` itself."""
    return glob_pattern(f"{glob}/*" if glob.rpartition("/")[2] == "**" else glob)


def can_descend(glob: Sequence[str], names: Sequence[str]) -> bool:
    """Say whether the folder `names` can be where a match of `glob` lies, at some depth; both are split at `/`."""
    if not names:
        return bool(glob)
    if not glob:
        return False
    if glob[0] == "**":
        visible = not names[0].startswith(".")
        return can_descend(glob[1:], names) or (visible and can_descend(glob, names[1:]))
    return _matcher(glob[0])(names[0]) and can_descend(glob[1:], names[1:])


@cache
def _matcher(part: str) -> Callable[[str], bool]:
    """Return the test for one name of a path; `**` stands for any that is not hidden."""
    pattern = glob_pattern("*" if part == "**" else part)
    return lambda name: pattern.fullmatch(name) is not None


def _children(root: Path, prefix: str, part: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(root / prefix) as listing:
            entries = list(listing)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        is_ours = entry.name in _NEVER or entry.name.startswith(TEMPORARY_PREFIX)
        if entry.name == part or (has_magic(part) and not is_ours):
            yield entry
