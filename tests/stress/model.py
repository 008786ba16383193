"""What the data of a commit must be: a file in each commit says it, beside the pointers that name the data.

A file's bytes follow from a number alone, so the model of a hundred megabytes is a page of JSON, and two projects that
draw the same number have a file in common.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random

NAME = "model.json"
SEEDS = 400
_SIZES = (0, 1, 60, 300, 300, 4_000, 4_000, 20_000, 20_000, 70_000, 150_000, 400_000)

Files = dict[str, list[int]]  # by path, relative to the project: the number of the bytes, and whether it is executable


def content(seed: int) -> bytes:
    """Return the bytes that `seed` stands for; half of them can be compressed."""
    size = _SIZES[seed % len(_SIZES)]
    if seed // len(_SIZES) % 2:
        return Random(seed).randbytes(size)
    line = f"line {seed} of many that look alike\n".encode()
    return (line * (size // len(line) + 1))[:size]


def write(root: Path, files: Files) -> None:
    """Leave the model of `files` in the folder of a project."""
    (root / NAME).write_text(json.dumps(files, sort_keys=True, indent=0))


def read(data: bytes) -> Files:
    """Return what `write` wrote."""
    files: Files = json.loads(data)
    return files


def differences(root: Path, files: Files, tracked: tuple[str, ...]) -> list[str]:
    """Return how the files at and below the paths `tracked` differ from `files`; none when each byte is as it must be."""
    found: dict[str, Path] = {}
    for path in tracked:
        place = root / path
        if place.is_file():
            found[path] = place
        for folder, _, names in os.walk(place):
            for name in names:
                inner = Path(folder, name)
                found[inner.relative_to(root).as_posix()] = inner
    told = [f"{path} is there and should not be" for path in sorted(found.keys() - files.keys())]
    told += [f"{path} is not there" for path in sorted(files.keys() - found.keys())]
    for path in sorted(files.keys() & found.keys()):
        seed, executable = files[path]
        if found[path].read_bytes() != content(seed):
            told.append(f"{path} does not have the bytes of {seed}")
        if not found[path].is_symlink() and bool(found[path].stat().st_mode & 0o100) != bool(executable):
            told.append(f"{path} is {'not ' if executable else ''}executable")
    return told
