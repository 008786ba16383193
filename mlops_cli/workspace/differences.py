"""Which files differ: between a revision and the workspace, or two revisions. This is what `mlx diff` lists."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from mlops_cli.files import folders_above
from mlops_cli.hashing import Digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.trees import EMPTY_TREE, Entry, Kind, TreeSource, diff, find, split_path
from mlops_cli.workspace.compare import as_entry
from mlops_cli.workspace.extents import find_in_part, see
from mlops_cli.workspace.ignore import leaves_out
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.reach import naming_listing
from mlops_cli.workspace.scan import Scanner, open_scanner
from mlops_cli.workspace.snapshot import Snapshot, Tracked, select, workspace_snapshot


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


def diff_data(
    trees: TreeSource, before: Snapshot, after: Snapshot, targets: Sequence[str] = ()
) -> tuple[FileChange, ...]:
    """Return the files that differ between what two sets of records track, sorted by path.

    MissingObject when a folder's tree is in no local store.
    """
    olds, news = ({entry.path: entry for entry in side.tracked()} for side in (before, after))
    changes: list[FileChange] = []
    for entry, part in select({**olds, **news}.values(), targets):
        with naming_listing(entry.path, before.revision, after.revision):
            old, new = (_object(trees, side.get(entry.path), part) for side in (olds, news))
            changes.extend(_changes(trees, _place(entry, part), old, new))
    return tuple(changes)


def diff_workspace(
    project: Project, before: Snapshot, targets: Sequence[str] = (), reporter: Reporter = SILENT
) -> tuple[FileChange, ...]:
    """Return the files that differ between a revision and the bytes in the workspace, tracked then or now.

    Of a part of a tracked folder nothing else is looked at.
    """
    old = {entry.path: entry for entry in before.tracked()}
    changes: list[FileChange] = []
    reporter.start("checking", None, "files")
    now = {entry.path: entry for entry in workspace_snapshot(project).tracked()}
    wanted = {**old, **now}
    extents = find_in_part(project)
    with open_scanner(project, reporter=reporter) as scanner:
        for entry, part in select(wanted.values(), targets):
            after = _look(project, scanner, entry.path, part)
            if entry.path in now:
                after = see(scanner, extents, now[entry.path], part, after).entry
            with naming_listing(entry.path, before.revision):
                recorded = _object(scanner, old.get(entry.path), part)
                changes.extend(_changes(scanner, _place(entry, part), recorded, after))
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
