"""What Git calls to merge a pointer, a lock or a `.gitignore` that both sides changed.

Git gives three temporary files and the name of the real one, and takes what is in the second when it ends; it goes on
with the merge whatever that is. So the file has conflict markers from the start, and a driver that is killed leaves a
conflict that everybody sees. It asks no network: what is not in the cache stays a conflict, for `mlx resolve`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from operator import eq
from pathlib import Path
from typing import NamedTuple

from mlops_cli.errors import MissingObject, MlxError, OutsideError, UsageError
from mlops_cli.files import write_atomic
from mlops_cli.hashing import Digest
from mlops_cli.records.pointers import SUFFIX
from mlops_cli.store.batches import open_batch
from mlops_cli.words import naming
from mlops_cli.workspace.git import find_checkout, merge_lines
from mlops_cli.workspace.pointer_merge import Draft
from mlops_cli.workspace.project import Project, find_root, load_project
from mlops_cli.workspace.record_merge import is_merged_here, merge_file
from mlops_cli.workspace.sides import Outcome, Sides

_DECIDE = "`mlx resolve --ours` or `--theirs` decides"


class Call(NamedTuple):
    """What Git says: the files of the versions, how long markers are, and what is merged, from the `top` down."""

    base: str
    ours: str
    theirs: str
    marker_size: int
    path: str
    top: Path


class Answer(NamedTuple):
    """Whether the file is merged, and what one should know."""

    clean: bool
    told: str = ""


def drive(call: Call, environ: Mapping[str, str]) -> Answer:
    """Merge one file: `call.ours` has the result afterwards, or conflict markers."""
    base, ours, theirs = (Path(call.top, name).read_bytes() for name in (call.base, call.ours, call.theirs))
    sides = Sides(base or None, ours, theirs)
    if not is_merged_here(call.path, sides):
        return _merge_lines(call)
    _write(call, mark(ours, theirs, call.marker_size))
    lazily = _CacheOfProject(call, environ)
    trees = Draft(lazily)
    try:
        outcome = merge_file(call.path, sides, trees)
        if outcome is None:
            _write(call, ours)
            return _merge_lines(call)
        if not outcome.clashes:
            lazily.store(trees)
    except MissingObject as error:
        return Answer(False, f"{error.message}; `mlx resolve --fetch` brings listings from a remote, and merges them")
    except MlxError as error:
        return Answer(False, f"{error.message}; `mlx resolve` tells more")
    if outcome.clashes:
        return Answer(False, _clashes(call.path, outcome))
    assert outcome.data is not None
    _write(call, outcome.data)
    return Answer(True, outcome.note and f"{call.path}: {outcome.note}")


def _clashes(path: str, outcome: Outcome) -> str:
    tracked = path.removesuffix(SUFFIX)
    names = [clash.path.removeprefix(f"{tracked}/") for clash in outcome.clashes]
    if len(names) == 1:
        (clash,) = outcome.clashes
        return f"`{clash.path}` was {clash.what}; {_DECIDE}"
    return f"in `{tracked}`, {naming(names)} were changed differently on both sides; {_DECIDE}"


def _merge_lines(call: Call) -> Answer:
    """Merge as Git does without a driver."""
    try:
        data, clean = merge_lines(call.top, (call.ours, call.base, call.theirs), call.marker_size)
    except OutsideError:  # no text: Git, too, leaves ours there, and calls it a conflict
        return Answer(False)
    _write(call, data)
    return Answer(clean)


def _write(call: Call, data: bytes) -> None:
    write_atomic(call.top / call.ours, data, durable=False)


def mark(ours: bytes, theirs: bytes, size: int) -> bytes:
    """Return both versions of a file as one, with Git's markers of that many characters around where they differ."""
    mine, yours = (data.splitlines(keepends=True) for data in (ours, theirs))
    head = _alike(mine, yours)
    tail = _alike(mine[head:][::-1], yours[head:][::-1])
    end, other_end = len(mine) - tail, len(yours) - tail
    parts = (
        *mine[:head],
        b"<" * size + b" ours\n",
        *map(_ended, mine[head:end]),
        b"=" * size + b"\n",
        *map(_ended, yours[head:other_end]),
        b">" * size + b" theirs\n",
        *mine[end:],
    )
    return b"".join(parts)


def _alike(one: Sequence[bytes], other: Sequence[bytes]) -> int:
    """Return how many lines two texts begin with alike."""
    return sum(takewhile(bool, map(eq, one, other)))


def _ended(line: bytes) -> bytes:
    return line if line.endswith(b"\n") else line + b"\n"


class _CacheOfProject:
    """The cache of the project that a file is in, found when it is first needed."""

    def __init__(self, call: Call, environ: Mapping[str, str]) -> None:
        self._call = call
        self._environ = environ
        self._project: Project | None = None

    def read(self, digest: Digest) -> bytes:
        """Return a tree that is on this machine; MissingObject, CorruptObject."""
        cache = self._open().cache
        with cache.offline():
            return cache.read(digest)

    def store(self, trees: Draft) -> None:
        """Store new trees; MlxError where that would take a network."""
        if not trees.new:
            return
        project = self._open()
        if project.cache.url is not None:
            raise OutsideError("the cache is behind a URL, and a merge asks no network")
        with project.guard.held(), open_batch(project.cache) as batch:
            for data in trees.new.values():
                batch.add_bytes(data)

    def _open(self) -> Project:
        if self._project is None:
            checkout = find_checkout(self._call.top)
            root = checkout and find_root((self._call.top / self._call.path).parent, checkout)
            if checkout is None or root is None:
                raise UsageError(f"`{self._call.path}` is in no mlx project")
            self._project = load_project(root, checkout, self._environ)
        return self._project
