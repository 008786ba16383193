"""What records say of their data's size, held against the data: nothing that is hashed keeps them from being wrong."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator
from contextlib import suppress

from mlops_cli.errors import CorruptObject, MissingObject, RecordError
from mlops_cli.records.pointers import SUFFIX, ObjectKind
from mlops_cli.store.cache import Cache
from mlops_cli.store.trees import read_totals
from mlops_cli.words import word
from mlops_cli.workspace.needs import SoundCache
from mlops_cli.workspace.snapshot import Tracked


def find_false(cache: Cache, sound: SoundCache, tracked: Iterable[Tracked]) -> Iterator[RecordError]:
    """Yield what is wrong with each record that says another size, or number of files, than its object has.

    What is absent or damaged cannot be judged.
    """
    for entry in tracked:
        with suppress(MissingObject, CorruptObject):
            if entry.kind is ObjectKind.TREE:
                size, files = read_totals(sound, entry.digest)
            else:
                size, files = _size(cache, entry), entry.files
            if (size, files) != (entry.size, entry.files):
                yield _false(entry, size, files)


def _size(cache: Cache, entry: Tracked) -> int:
    with cache.open(entry.digest) as stream:
        return stream.seek(0, os.SEEK_END)


def _false(entry: Tracked, size: int, files: int) -> RecordError:
    name = f"the lock of stage `{entry.stage}`" if entry.stage else f"`{entry.path}{SUFFIX}`"
    of = f" of `{entry.path}`" if entry.stage else ""
    if entry.kind is ObjectKind.TREE:
        said, true = f"files: {entry.files:,}, size: {entry.size:,}", f"files: {files:,}, size: {size:,}"
    else:
        said, true = f"size: {entry.size:,}", f"size: {size:,}"
    again = f"mlx run --force {shlex.quote(entry.stage)}" if entry.stage else f"mlx add {word(entry.path)}"
    hint = f"write that there, or `{again}` does where the workspace has the data"
    return RecordError(f"{name} says {said}{of}, and what it names has {true}", hint=hint)
