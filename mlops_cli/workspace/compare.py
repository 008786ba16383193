"""How data stands: the workspace against what the records name, and one object against another, in words.

`mlx status` counts the differences, `mlx why` words them; `differences` lists them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple

from mlops_cli.errors import MissingObject, MlxError, RecordError, UsageError
from mlops_cli.hashing import Digest
from mlops_cli.records.pointers import ObjectKind, SomeObject
from mlops_cli.records.stages import Stage
from mlops_cli.store.cache import Cache
from mlops_cli.store.trees import Entry, Kind, TreeSource, diff
from mlops_cli.workspace.extents import Extents, find_in_part, see
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.scan import Scanner, is_stored
from mlops_cli.workspace.snapshot import Snapshot, Tracked

Look = Callable[[str], Entry | None]


class DataState(StrEnum):
    """How a tracked path stands in the workspace."""

    OK = "ok"
    MODIFIED = "modified"
    MISSING = "missing"  # not in the workspace; the cache can bring it back
    NOT_CACHED = "not_cached"  # neither in the workspace nor in the cache; a pull can bring it
    UNTRACKED = "untracked"  # an output that no run has recorded
    UNSTORABLE = "unstorable"  # something is there, or in it, that mlx cannot store: a FIFO, another Git repository


class DataStatus(NamedTuple):
    """The state of one tracked path, with how many files below it differ.

    `source` is what it was imported from, as people call that; empty when it was not. `storable` says whether `mlx add`
    could record what is there, `restorable` whether the cache has all that it takes to bring back what is recorded.
    Of the `files` of a folder that is here in part, `away` are not here, and on purpose: that is no difference.
    """

    path: str
    state: DataState
    added: int = 0
    modified: int = 0
    deleted: int = 0
    source: str = ""
    storable: bool = True
    restorable: bool = True
    away: int = 0
    files: int = 0


def data_status(
    project: Project, snapshot: Snapshot, look: Look, trees: Scanner, paths: Sequence[str] | None = None
) -> tuple[tuple[DataStatus, ...], tuple[MlxError, ...]]:
    """Return the state of every pointer's path (or only of `paths`), and what keeps others from being known.

    That is pointers that cannot be read, and what `look` says of paths that hold what cannot be stored. `look` returns
    what is at a path; `trees` has the trees of what it returned.
    """
    found: list[DataStatus] = []
    entries, unread = snapshot.readable(outputs=False, paths=paths)
    problems: list[MlxError] = list(unread)
    extents = _extents(project, problems)
    for entry in entries:
        try:
            status = _status_in_part(project, look(entry.path), trees, entry, extents)
        except UsageError as error:
            status = DataStatus(entry.path, DataState.UNSTORABLE, storable=False)
            problems.append(error)
        found.append(status if entry.source is None else status._replace(source=entry.source.place))
    return tuple(found), tuple(problems)


def _extents(project: Project, problems: list[MlxError]) -> Extents:
    try:
        return find_in_part(project)
    except UsageError as error:
        problems.append(error)
        return {}


def untracked_outputs(project: Project, snapshot: Snapshot, stages: Iterable[Stage]) -> Iterator[DataStatus]:
    """Yield the outputs of `stages` that exist and that no run recorded; one whose lock cannot be read may have."""
    for stage in stages:
        try:
            if snapshot.lock(stage) is not None:
                continue
        except RecordError:
            continue
        for out in stage.outs:
            if not out.git and os.path.lexists(project.root / out.path):
                yield DataStatus(out.path, DataState.UNTRACKED)


def _status_in_part(
    project: Project, present: Entry | None, trees: Scanner, tracked: Tracked, extents: Extents
) -> DataStatus:
    try:
        seen = see(trees, extents, tracked, "", present)
    except MissingObject:  # what is away cannot be told from what was deleted
        return DataStatus(tracked.path, DataState.MODIFIED, restorable=False)
    status = _status(project, seen.entry, trees, tracked)
    return status._replace(away=seen.away, files=tracked.files) if seen.away else status


def _status(project: Project, present: Entry | None, trees: TreeSource, tracked: Tracked) -> DataStatus:
    if present is None:
        lone = Kind.FILE if tracked.kind is ObjectKind.BLOB else Kind.FOLDER
        here = _is_held(project.cache, Entry(b"", lone, tracked.size, tracked.files, tracked.digest))
        state = DataState.MISSING if here else DataState.NOT_CACHED
        return DataStatus(tracked.path, state, deleted=max(tracked.files, 1), restorable=here)
    if same(tracked, present):
        return DataStatus(tracked.path, DataState.OK)
    if tracked.kind is ObjectKind.BLOB or present.kind != Kind.FOLDER:
        here = _is_held(project.cache, as_entry(tracked))
        storable = present.kind != Kind.SYMLINK  # which only a folder can hold
        return DataStatus(tracked.path, DataState.MODIFIED, modified=1, storable=storable, restorable=here)
    try:
        changes = diff(trees, tracked.digest, present.digest)
    except MissingObject:  # what it was cannot be known here: only that it differs
        return DataStatus(tracked.path, DataState.MODIFIED, restorable=False)
    old = [change.old for change in (*changes.modified, *changes.deleted)]
    wanted = [entry.digest for entry in old if entry and entry.kind != Kind.FOLDER]
    here = project.cache.url is not None or not project.cache.missing(wanted)
    counts = (len(changes.added), len(changes.modified), len(changes.deleted))
    return DataStatus(tracked.path, DataState.MODIFIED, *counts, restorable=here)


def _is_held(cache: Cache, entry: Entry) -> bool:
    """Say whether an entry is stored; a cache behind a URL is not asked, for `status` uses no network."""
    return cache.url is not None or is_stored(cache, entry)


def as_entry(tracked: Tracked) -> Entry:
    """Return the entry that a record names."""
    lone = Kind.EXECUTABLE if tracked.executable else Kind.FILE
    kind = Kind.FOLDER if tracked.kind is ObjectKind.TREE else lone
    return Entry(os.fsencode(tracked.path.rpartition("/")[2]), kind, tracked.size, tracked.files, tracked.digest)


def same(tracked: Tracked, present: Entry) -> bool:
    """Say whether the workspace's entry is what the record names."""
    recorded = as_entry(tracked)
    return (recorded.digest, recorded.kind) == (present.digest, present.kind)


def describe_change(trees: TreeSource, old: SomeObject, new: SomeObject) -> str:
    """Word how one object became another, as in `3 files modified, 1 added` or `1,203 → 1,250 bytes`.

    When a tree is not here to be compared, the sizes are told.
    """
    if old.kind is ObjectKind.TREE and new.kind is ObjectKind.TREE:
        try:
            changes = diff(trees, old.digest, new.digest)
        except MissingObject:
            return _sizes(old, new)
        counts = (("modified", changes.modified), ("added", changes.added), ("deleted", changes.deleted))
        words = [(len(files), word) for word, files in counts if files]
        if not words:
            return "only empty folders differ"
        first = f"{words[0][0]:,} file{'' if words[0][0] == 1 else 's'} {words[0][1]}"
        return ", ".join([first, *(f"{count:,} {word}" for count, word in words[1:])])
    if old.kind is not new.kind:
        return "a folder became a file" if old.kind is ObjectKind.TREE else "a file became a folder"
    return _sizes(old, new)


def _sizes(old: SomeObject, new: SomeObject) -> str:
    if old.size != new.size:
        return f"{old.size:,} → {new.size:,} bytes"
    return f"same size, {short(old.digest)} → {short(new.digest)}"


def short(digest: Digest) -> str:
    """Return a digest cut for reading, as in `blake3:9f0c12ab`."""
    return digest[:15]
