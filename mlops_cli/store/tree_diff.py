"""What differs between two trees: only folders and leaves that differ are read."""

from __future__ import annotations

from operator import itemgetter
from typing import NamedTuple

from mlops_cli.hashing import Digest
from mlops_cli.store.tree_format import Columns, Entry, Index, Kind
from mlops_cli.store.tree_reading import EMPTY_TREE, Limits, Named, TreeSource, leaf_entries, open_columns


class Change(NamedTuple):
    """One path that differs: added without `old`, deleted without `new`, else modified."""

    path: bytes
    old: Entry | None
    new: Entry | None


class TreeDiff(NamedTuple):
    """What differs between two folders, each part sorted by path."""

    added: tuple[Change, ...]
    modified: tuple[Change, ...]
    deleted: tuple[Change, ...]


def diff(store: TreeSource, old: Digest | None, new: Digest | None, above: bytes = b"") -> TreeDiff:
    """Return what differs between two folders, None being one that does not exist; `above` begins every path.

    Compared are files, symlinks and empty folders; other folders exist through what is in them. Equal sub-folders and
    equal leaves are not read. TreeError for more files than the trees declare, more folders without files than
    `MOST_WITHOUT_FILES`, or longer paths than `PATH_LIMIT`.
    """
    changes: list[Change] = []
    old_limits, new_limits = Limits(old or EMPTY_TREE), Limits(new or EMPTY_TREE)
    waiting: list[tuple[bytes, Named | None, Named | None]] = []
    if old != new:
        waiting.append((above, Named(old) if old else None, Named(new) if new else None))
    while waiting:
        prefix, before, after = waiting.pop()
        old_entries, new_entries = unequal_entries(store, before, after)
        for name in old_entries.keys() | new_entries.keys():
            was, now = old_entries.get(name), new_entries.get(name)
            if was == now:
                continue
            path = prefix + name
            old_limits.meet(path, was, len(above))
            new_limits.meet(path, now, len(above))
            old_folder, new_folder = _filled_folder(was), _filled_folder(now)
            if old_folder != new_folder:
                waiting.append((path + b"/", old_folder, new_folder))
            change = Change(path, None if old_folder else was, None if new_folder else now)
            if change.old != change.new:
                changes.append(change)
    changes.sort(key=itemgetter(0))
    return TreeDiff(
        tuple(change for change in changes if change.old is None),
        tuple(change for change in changes if change.old is not None and change.new is not None),
        tuple(change for change in changes if change.new is None),
    )


def _filled_folder(entry: Entry | None) -> Named | None:
    """Return the tree of a folder that has something in it, else None."""
    if entry is None or entry.kind != Kind.FOLDER or entry[2:] == (0, 0, EMPTY_TREE):
        return None
    return Named(entry.digest, (entry.size, entry.files))


def unequal_entries(
    store: TreeSource, old: Named | None, new: Named | None
) -> tuple[dict[bytes, Entry], dict[bytes, Entry]]:
    """Return the entries of two folders by name, without those that are surely the same in both."""
    trees = [(folder, open_columns(store, *folder) if folder else None) for folder in (old, new)]
    (_, before), (_, after) = trees
    if isinstance(before, Columns) and isinstance(after, Columns) and before.names == after.names:
        numbers = before.unlike(after)
        return {before.names[n]: before.entry(n) for n in numbers}, {after.names[n]: after.entry(n) for n in numbers}
    leaves = [{leaf.digest for leaf in tree.leaves} if isinstance(tree, Index) else set() for _, tree in trees]
    shared = leaves[0] & leaves[1]
    sides: list[dict[bytes, Entry]] = []
    for folder, tree in trees:
        if folder is None or tree is None:
            sides.append({})
        elif isinstance(tree, Index):
            parts = leaf_entries(
                store, folder.digest, tree, [leaf for leaf in tree.leaves if leaf.digest not in shared]
            )
            sides.append({entry.name: entry for part in parts for entry in part})
        else:
            sides.append({entry.name: entry for entry in tree.entries()})
    return sides[0], sides[1]
