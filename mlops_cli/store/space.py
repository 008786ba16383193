"""What a store takes on disk, by what it is for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PARTS = ("objects", "packs", "index", "runs", "trash", "quarantine", "partial", "tmp")


@dataclass(frozen=True, slots=True)
class Part:
    """One folder of a store, `other` for all that is not one; `bytes` is the length of its files."""

    name: str
    files: int
    bytes: int


def measure_parts(root: Path) -> tuple[Part, ...]:
    """Return what each part of the store at `root` takes; all of them, also those that are not there."""
    counted = {name: [0, 0] for name in (*_PARTS, "other")}
    for name, size in _files(str(root)):
        top, slash, _ = name.partition("/")
        count = counted[top if slash and top in counted else "other"]
        count[0] += 1
        count[1] += size
    return tuple(Part(name, files, size) for name, (files, size) in counted.items())


def _files(root: str) -> Iterator[tuple[str, int]]:
    """Yield every file below `root`, relative to it, with its length; those that go meanwhile are passed over."""
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(f"{root}/{folder}") as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{folder}{entry.name}/")
                    continue
                with suppress(FileNotFoundError):
                    yield folder + entry.name, entry.stat(follow_symlinks=False).st_size
