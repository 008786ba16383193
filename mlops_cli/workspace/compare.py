"""How data differs: the workspace against what the records name, and one revision against another.

`mlx status` counts the differences, `mlx diff` lists them, `mlx why` words them; all three ask here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import NamedTuple

from mlops_cli.errors import MissingObject, UsageError
from mlops_cli.files import folders_above
from mlops_cli.hashing import Digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.records.pointers import ObjectKind, SomeObject
from mlops_cli.store.trees import EMPTY_TREE, Entry, Kind, TreeSource, diff, find, split_path
from mlops_cli.workspace.ignore import leaves_out
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.scan import Scanner, is_stored, open_scanner
from mlops_cli.workspace.snapshot import Snapshot, Tracked, select, workspace_snapshot

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

    `source` is what it was imported from, as people call that; empty when it was not.
    """

    path: str
    state: DataState
    added: int = 0
    modified: int = 0
    deleted: int = 0
    source: str = ""


class FileChange(NamedTuple):
    """One file (or empty folder) that differs; sizes in bytes, None on the side that does not have it.

    `executable` is whether the file may be run now; None unless that changed.
    """

    path: str
    change: str
    old_size: int | None
    new_size: int | None
    old_digest: Digest | None
    new_digest: Digest | None
    executable: bool | None = None


def data_status(
    project: Project, snapshot: Snapshot, look: Look, trees: TreeSource
) -> tuple[tuple[DataStatus, ...], tuple[UsageError, ...]]:
    """Return the state of every pointer's path, then of outputs that exist and that no run recorded.

    `look` returns what is at a path; `trees` has the trees of what it returned. With them goes what `look` says of
    paths that hold what cannot be stored.
    """
    found: list[DataStatus] = []
    problems: list[UsageError] = []
    for entry in snapshot.tracked(outputs=False):
        try:
            status = _status(project, look(entry.path), trees, entry)
        except UsageError as error:
            status = DataStatus(entry.path, DataState.UNSTORABLE)
            problems.append(error)
        found.append(status if entry.source is None else status._replace(source=entry.source.place))
    for stage in snapshot.stages:
        if snapshot.lock(stage) is None:
            found.extend(
                DataStatus(out.path, DataState.UNTRACKED)
                for out in stage.outs
                if not out.git and os.path.lexists(project.root / out.path)
            )
    return tuple(found), tuple(problems)


def _status(project: Project, present: Entry | None, trees: TreeSource, tracked: Tracked) -> DataStatus:
    if present is None:
        lone = Kind.FILE if tracked.kind is ObjectKind.BLOB else Kind.FOLDER
        here = is_stored(project.cache, Entry(b"", lone, tracked.size, tracked.files, tracked.digest))
        state = DataState.MISSING if here else DataState.NOT_CACHED
        return DataStatus(tracked.path, state, deleted=max(tracked.files, 1))
    if same(tracked, present):
        return DataStatus(tracked.path, DataState.OK)
    if tracked.kind is ObjectKind.BLOB or present.kind != Kind.FOLDER:
        return DataStatus(tracked.path, DataState.MODIFIED, modified=1)
    try:
        changes = diff(trees, tracked.digest, present.digest)
    except MissingObject:  # what it was cannot be known here: only that it differs
        return DataStatus(tracked.path, DataState.MODIFIED)
    return DataStatus(tracked.path, DataState.MODIFIED, len(changes.added), len(changes.modified), len(changes.deleted))


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


def diff_data(
    trees: TreeSource,
    old: Sequence[Tracked],
    new: Sequence[Tracked],
    targets: Sequence[str] = (),
) -> tuple[FileChange, ...]:
    """Return the files that differ between two sets of tracked paths, sorted by path.

    MissingObject when a folder's tree is in no local store.
    """
    olds, news = ({entry.path: entry for entry in side} for side in (old, new))
    changes: list[FileChange] = []
    for entry, part in select({**olds, **news}.values(), targets):
        before, after = (_object(trees, side.get(entry.path), part) for side in (olds, news))
        changes.extend(_changes(trees, _place(entry, part), before, after))
    return tuple(changes)


def diff_workspace(
    project: Project, before: Snapshot, targets: Sequence[str] = (), reporter: Reporter = SILENT
) -> tuple[FileChange, ...]:
    """Return the files that differ between a revision and the bytes in the workspace, tracked then or now.

    Of a part of a tracked folder nothing else is looked at.
    """
    old = {entry.path: entry for entry in before.tracked()}
    wanted = {**old, **{entry.path: entry for entry in workspace_snapshot(project).tracked()}}
    changes: list[FileChange] = []
    reporter.start("checking", None, "files")
    with open_scanner(project, reporter=reporter) as scanner:
        for entry, part in select(wanted.values(), targets):
            after = _look(project, scanner, entry.path, part)
            changes.extend(_changes(scanner, _place(entry, part), _object(scanner, old.get(entry.path), part), after))
    return tuple(changes)


def _place(tracked: Tracked, part: str) -> str:
    return f"{tracked.path}/{part}" if part else tracked.path


def _look(project: Project, scanner: Scanner, owner: str, part: str) -> Entry | None:
    """Return what the workspace has at a tracked path or at a part of it, if a scan of the whole would meet that."""
    if not part:
        return scanner.look(owner)
    path = f"{owner}/{part}"
    if any((project.root / above).is_symlink() for above in folders_above(path)):
        return None
    if leaves_out(project.root, path, below=owner):
        return None
    found = scanner.look(path)
    if found is not None and found.digest == EMPTY_TREE and any((project.root / path).iterdir()):
        return None  # all that is in the folder is left out
    return found


def _object(trees: TreeSource, tracked: Tracked | None, part: str) -> Entry | None:
    if tracked is None:
        return None
    if part:
        return find(trees, tracked.digest, split_path(part))
    return as_entry(tracked)


def _changes(trees: TreeSource, place: str, old: Entry | None, new: Entry | None) -> list[FileChange]:
    if (old and old[1:]) == (new and new[1:]):
        return []
    old_tree, new_tree = (side.digest if side and side.kind == Kind.FOLDER else None for side in (old, new))
    found: list[FileChange] = []
    if old_tree != new_tree:
        changes = diff(trees, old_tree, new_tree)
        found = [
            _file_change(f"{place}/{os.fsdecode(change.path)}", change.old, change.new)
            for change in sorted((*changes.added, *changes.modified, *changes.deleted), key=lambda c: c.path)
        ]
    old_lone, new_lone = _lone(old, new), _lone(new, old)
    if old_lone or new_lone:
        found.insert(0, _file_change(place, old_lone, new_lone))
    return found


def _lone(side: Entry | None, other: Entry | None) -> Entry | None:
    """Return the side that no listing speaks for: a file, or an empty folder where the other side has none at all."""
    if side is None or side.kind != Kind.FOLDER:
        return side
    is_folder = other is not None and other.kind == Kind.FOLDER
    return side if side.digest == EMPTY_TREE and not is_folder else None


def _file_change(path: str, old: Entry | None, new: Entry | None) -> FileChange:
    word = "added" if old is None else "deleted" if new is None else "modified"
    turned = old is not None and new is not None and {old.kind, new.kind} == {Kind.FILE, Kind.EXECUTABLE}
    return FileChange(
        path,
        word,
        old.size if old else None,
        new.size if new else None,
        old.digest if old else None,
        new.digest if new else None,
        new.kind == Kind.EXECUTABLE if turned and new else None,
    )
