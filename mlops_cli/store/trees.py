"""Trees of folders: reading them, comparing them, changing one path in them.

The one idea: a digest stands for everything beneath it, so what is equal is never read. A comparison opens only folders
and leaves that differ; a change at one path writes only the folders above it. Trees are hostile input: a few objects
that name one another could stand for any number of paths, so every tree must have the totals that the entry above it
says, and folders without files are counted. The bytes of a tree are `tree_format`'s; reading files and deciding what
belongs in a tree is done above.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import NamedTuple, Protocol

from mlops_cli.errors import MissingObject
from mlops_cli.hashing import Digest, hash_bytes
from mlops_cli.store.tree_format import (
    PATH_LIMIT,
    SPLIT_ABOVE,
    Entry,
    Index,
    Kind,
    Leaf,
    TreeError,
    check_entries,
    decode_tree,
    encode_entries,
    encode_index,
    encode_leaves,
    encode_tree,
    encoded_size,
    totals,
    tree_error,
)

__all__ = [
    "EMPTY_TREE",
    "MOST_WITHOUT_FILES",
    "Change",
    "Entry",
    "Index",
    "Kind",
    "Leaf",
    "TreeDiff",
    "TreeError",
    "TreeSource",
    "TreeTarget",
    "check_folder",
    "check_links",
    "decode_tree",
    "diff",
    "encode_tree",
    "find",
    "graft",
    "read_link",
    "read_tree",
    "totals",
    "tree_objects",
    "walk",
    "write_tree",
]

EMPTY_TREE = hash_bytes(encode_entries(()))
# Of folders that hold no file, however deep; those with files are no more than the totals allow.
MOST_WITHOUT_FILES = 1_000_000


class Change(NamedTuple):
    """One path that differs: added without `old`, deleted without `new`, else modified."""

    path: bytes
    old: Entry | None
    new: Entry | None


class _Named(NamedTuple):
    """A folder's tree and the totals that the entry above declares; the root has none above it."""

    digest: Digest
    declared: tuple[int, int] | None = None


class TreeDiff(NamedTuple):
    """What differs between two folders, each part sorted by path."""

    added: tuple[Change, ...]
    modified: tuple[Change, ...]
    deleted: tuple[Change, ...]


class TreeSource(Protocol):
    """Where trees are read from: a store or a batch."""

    def read(self, digest: Digest) -> bytes: ...


class TreeTarget(TreeSource, Protocol):
    """Where trees are written to: a batch."""

    def add_bytes(self, data: bytes) -> Digest: ...


def read_tree(store: TreeSource, digest: Digest) -> tuple[Entry, ...]:
    """Return all entries of a folder, those of its leaves joined; MissingObject, CorruptObject."""
    return _read_tree(store, digest)


def _read_tree(store: TreeSource, digest: Digest, declared: tuple[int, int] | None = None) -> tuple[Entry, ...]:
    tree = _open(store, digest, declared)
    if not isinstance(tree, Index):
        return tree
    return tuple(entry for part in _leaf_entries(store, digest, tree.leaves) for entry in part)


def _leaf_entries(store: TreeSource, root: Digest, leaves: Sequence[Leaf]) -> Iterator[tuple[Entry, ...]]:
    """Yield the entries of neighbouring leaves, having checked that they are what the index says, and in order."""
    before = b""
    for leaf in leaves:
        entries = decode_tree(store.read(leaf.digest), leaf.digest)
        if isinstance(entries, Index) or not entries:
            raise tree_error(root, f"leaf `{leaf.digest}` is none")
        if (entries[0].name, len(entries), *totals(entries)) != leaf[:4] or entries[0].name <= before:
            raise tree_error(root, f"leaf `{leaf.digest}` is not what the index says")
        before = entries[-1].name
        yield entries


def check_folder(store: TreeSource, folder: Entry) -> None:
    """Raise TreeError unless the tree of `folder` has the bytes and the number of files that the entry says."""
    _open(store, folder.digest, (folder.size, folder.files))


def _open(store: TreeSource, digest: Digest, declared: tuple[int, int] | None = None) -> tuple[Entry, ...] | Index:
    """Read a tree; TreeError unless it has the totals that what names it declares."""
    tree = decode_tree(store.read(digest), digest)
    if declared is not None and _totals(tree) != declared:
        raise _other_totals(digest, _totals(tree), declared)
    return tree


def _totals(tree: tuple[Entry, ...] | Index) -> tuple[int, int]:
    return totals(tree.leaves if isinstance(tree, Index) else tree)


def _other_totals(digest: Digest, found: tuple[int, int], declared: tuple[int, int]) -> TreeError:
    (size, files), (said_size, said_files) = found, declared
    return TreeError(
        f"tree `{digest}` sums up to files: {files:,}, size: {size:,}; what names it says"
        f" files: {said_files:,}, size: {said_size:,}",
        hint="the record, or the tree above, is wrong: `git log` tells who wrote it",
    )


def read_link(store: TreeSource, link: Entry) -> bytes:
    """Return the target of a symlink; TreeError for bytes that no link can lead to, or not of the size it says."""
    target = store.read(link.digest)
    if not 0 < len(target) <= PATH_LIMIT or len(target) != link.size or b"\0" in target:
        raise TreeError(
            f"object `{link.digest}` cannot be the target of a symbolic link",
            hint="the tree that names it is wrong: `git log` tells who wrote its record",
        )
    return target


def check_links(store: TreeSource, entries: Iterable[Entry | None]) -> None:
    """Raise TreeError when one of `entries` is a symlink that cannot be made; what the store lacks passes."""
    for entry in entries:
        if entry is not None and entry.kind == Kind.SYMLINK:
            with suppress(MissingObject):
                read_link(store, entry)


class _Limits:
    """What one walk may meet: so many folders without files, and paths as long as a system can open."""

    def __init__(self, root: Digest) -> None:
        self._root = root
        self._left = MOST_WITHOUT_FILES

    def meet(self, path: bytes, entry: Entry | None) -> None:
        """Count what was met; TreeError when that is too much."""
        if entry is None:
            return
        if len(path) > PATH_LIMIT:
            raise tree_error(self._root, f"it stands for a path of more than {PATH_LIMIT:,} bytes")
        if entry.files or entry.kind != Kind.FOLDER:
            return
        self._left -= 1
        if self._left < 0:
            raise tree_error(self._root, f"it stands for more than {MOST_WITHOUT_FILES:,} folders without files")


def find(store: TreeSource, root: Digest, parts: Sequence[bytes]) -> Entry | None:
    """Return the entry at a path below `root`, or None; one tree and at most one leaf is read per part."""
    entry = _find_name(store, root, parts[0]) if parts else None
    for name in parts[1:]:
        if entry is None or entry.kind != Kind.FOLDER:
            return None
        entry = _find_name(store, entry.digest, name, (entry.size, entry.files))
    return entry


def _find_name(store: TreeSource, digest: Digest, name: bytes, declared: tuple[int, int] | None = None) -> Entry | None:
    tree = _open(store, digest, declared)
    if isinstance(tree, Index):
        at = bisect_right(tree.leaves, name, key=itemgetter(0)) - 1
        if at < 0:
            return None
        (tree,) = _leaf_entries(store, digest, tree.leaves[at : at + 1])
    at = bisect_right(tree, name, key=itemgetter(0)) - 1
    return tree[at] if at >= 0 and tree[at].name == name else None


def walk(store: TreeSource, root: Digest, prefix: bytes = b"") -> Iterator[tuple[bytes, Entry]]:
    """Yield every path below `root` with its entry, sorted within each folder, a folder before what is in it."""
    limits = _Limits(root)
    levels = [(prefix + b"/" if prefix else b"", iter(read_tree(store, root)))]
    while levels:
        start, entries = levels[-1]
        entry = next(entries, None)
        if entry is None:
            levels.pop()
            continue
        limits.meet(start + entry.name, entry)
        yield start + entry.name, entry
        if entry.kind == Kind.FOLDER:
            below = _read_tree(store, entry.digest, (entry.size, entry.files))
            levels.append((start + entry.name + b"/", iter(below)))


def tree_objects(store: TreeSource, root: Digest) -> Iterator[tuple[Digest, int]]:
    """Yield every object that `root` needs, once, with its size: what a tree names before the tree itself."""
    yielded: set[Digest] = set()
    entered: dict[Digest, tuple[int, int]] = {}
    levels = [_own_objects(store, root, entered)]
    while levels:
        own, entries = levels[-1]
        for entry in entries:
            if entry.kind == Kind.FOLDER:
                new = entry.digest not in entered
                below = _own_objects(store, entry.digest, entered) if new else None
                if entered[entry.digest] != (entry.size, entry.files):
                    raise _other_totals(entry.digest, entered[entry.digest], (entry.size, entry.files))
                if below is not None:
                    levels.append(below)
                    break
            elif entry.digest not in yielded:
                yielded.add(entry.digest)
                yield entry.digest, entry.size
        else:
            levels.pop()
            for digest, size in own:
                if digest not in yielded:
                    yielded.add(digest)
                    yield digest, size


def _own_objects(
    store: TreeSource, digest: Digest, entered: dict[Digest, tuple[int, int]]
) -> tuple[list[tuple[Digest, int]], Iterator[Entry]]:
    """Return a tree's own objects with their sizes, leaves first, and its entries; its totals go to `entered`."""
    data = store.read(digest)
    tree = decode_tree(data, digest)
    entered[digest] = _totals(tree)
    if not isinstance(tree, Index):
        return [(digest, len(data))], iter(tree)
    entries: list[Entry] = []
    own = []
    for leaf, part in zip(tree.leaves, _leaf_entries(store, digest, tree.leaves), strict=True):
        entries += part
        own.append((leaf.digest, encoded_size(part)))
    return [*own, (digest, len(data))], iter(entries)


def diff(store: TreeSource, old: Digest | None, new: Digest | None) -> TreeDiff:
    """Return what differs between two folders, None being one that does not exist.

    Compared are files, symlinks and empty folders; other folders exist through what is in them. Equal sub-folders and
    equal leaves are not read. TreeError for more files than the trees declare, more folders without files than
    `MOST_WITHOUT_FILES`, or longer paths than `PATH_LIMIT`.
    """
    changes: list[Change] = []
    old_limits, new_limits = _Limits(old or EMPTY_TREE), _Limits(new or EMPTY_TREE)
    waiting: list[tuple[bytes, _Named | None, _Named | None]] = []
    if old != new:
        waiting.append((b"", _Named(old) if old else None, _Named(new) if new else None))
    while waiting:
        prefix, before, after = waiting.pop()
        old_entries, new_entries = _unequal_entries(store, before, after)
        for name in old_entries.keys() | new_entries.keys():
            was, now = old_entries.get(name), new_entries.get(name)
            if was == now:
                continue
            path = prefix + name
            old_limits.meet(path, was)
            new_limits.meet(path, now)
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


def _filled_folder(entry: Entry | None) -> _Named | None:
    """Return the tree of a folder that has something in it, else None."""
    if entry is None or entry.kind != Kind.FOLDER or entry[2:] == (0, 0, EMPTY_TREE):
        return None
    return _Named(entry.digest, (entry.size, entry.files))


def _unequal_entries(
    store: TreeSource, old: _Named | None, new: _Named | None
) -> tuple[dict[bytes, Entry], dict[bytes, Entry]]:
    """Return the entries of two folders by name, without those of the leaves they share."""
    trees = [(folder, _open(store, *folder) if folder else ()) for folder in (old, new)]
    leaves = [{leaf.digest for leaf in tree.leaves} if isinstance(tree, Index) else set() for _, tree in trees]
    shared = leaves[0] & leaves[1]
    sides = []
    for folder, tree in trees:
        if isinstance(tree, Index) and folder:
            parts = _leaf_entries(store, folder.digest, [leaf for leaf in tree.leaves if leaf.digest not in shared])
            sides.append({entry.name: entry for part in parts for entry in part})
        elif not isinstance(tree, Index):
            sides.append({entry.name: entry for entry in tree})
    return sides[0], sides[1]


def write_tree(batch: TreeTarget, entries: Sequence[Entry], name: bytes = b"") -> Entry:
    """Add a folder's tree to a batch and return the folder's entry."""
    *_, digest = [batch.add_bytes(data) for _, data in encode_tree(entries)]
    return Entry(name, Kind.FOLDER, *totals(entries), digest)


def graft(
    store: TreeSource, batch: TreeTarget, root: Digest | None, parts: Sequence[bytes], entry: Entry | None
) -> Entry:
    """Return the entry, without a name, of `root` with the path `parts` replaced by `entry`, or removed without one.

    Folders on the way are made, and removed when nothing is left in them; a file in the way gives place to a folder.
    The result is the tree that a rebuild of the whole would give. New trees go to `batch`; `store` is asked for what
    the batch cannot give.
    """
    source = _Either(batch, store)
    folders = _folders_on_the_way(source, root, parts)
    if entry is None and (folders[-1] is None or _find_name(source, folders[-1], parts[-1]) is None):
        return _summary(source, batch, root)
    changed: Entry | None = entry
    for position in range(len(parts) - 1, -1, -1):
        folder = _replace(source, batch, folders[position], parts[position], changed)
        changed = None if entry is None and folder.digest == EMPTY_TREE else folder
    return folder


def _folders_on_the_way(store: TreeSource, root: Digest | None, parts: Sequence[bytes]) -> list[Digest | None]:
    """Return the tree that holds each part of a path, None where there is none."""
    folders = [root]
    for name in parts[:-1]:
        holder = folders[-1]
        found = _find_name(store, holder, name) if holder else None
        if found is not None and found.kind == Kind.FOLDER:
            check_folder(store, found)
            folders.append(found.digest)
        else:
            folders.append(None)
    return folders


def _replace(store: TreeSource, batch: TreeTarget, folder: Digest | None, name: bytes, entry: Entry | None) -> Entry:
    """Return a folder's entry after one of its names was given another entry, or none."""
    if folder is None:
        return write_tree(batch, _with((), name, entry))
    tree = decode_tree(store.read(folder), folder)
    if not isinstance(tree, Index):
        return write_tree(batch, _with(tree, name, entry))
    # The leaf of the name and the next: a name that ended a leaf may be gone, or a new one belong to the next.
    at = max(bisect_right(tree.leaves, name, key=itemgetter(0)) - 1, 0)
    before, touched, after = tree.leaves[:at], tree.leaves[at : at + 2], tree.leaves[at + 2 :]
    entries = _with([entry for part in _leaf_entries(store, folder, touched) for entry in part], name, entry)
    if sum(leaf.entries for leaf in before + after) + len(entries) <= SPLIT_ABOVE:
        first = [entry for part in _leaf_entries(store, folder, before) for entry in part]
        last = [entry for part in _leaf_entries(store, folder, after) for entry in part]
        return write_tree(batch, [*first, *entries, *last])
    check_entries(entries)
    leaves = list(before)
    for leaf, data in encode_leaves(entries):
        batch.add_bytes(data)
        leaves.append(leaf)
    leaves.extend(after)
    return _entry_of(Index(tuple(leaves)), batch.add_bytes(encode_index(leaves)))


def _with(entries: Sequence[Entry], name: bytes, entry: Entry | None) -> list[Entry]:
    """Return sorted entries with those of one name replaced."""
    at = bisect_left(entries, name, key=itemgetter(0))
    rest = at + 1 if at < len(entries) and entries[at].name == name else at
    return [*entries[:at], *([entry._replace(name=name)] if entry else []), *entries[rest:]]


def _summary(store: TreeSource, batch: TreeTarget, root: Digest | None) -> Entry:
    if root is None:
        return write_tree(batch, ())
    return _entry_of(decode_tree(store.read(root), root), root)


def _entry_of(tree: tuple[Entry, ...] | Index, digest: Digest) -> Entry:
    return Entry(b"", Kind.FOLDER, *_totals(tree), digest)


class _Either:
    """Reads what a batch has not published yet, and everything else from where trees were read before."""

    def __init__(self, first: TreeSource, second: TreeSource) -> None:
        self._first = first
        self._second = second

    def read(self, digest: Digest) -> bytes:
        try:
            return self._first.read(digest)
        except MissingObject:
            return self._second.read(digest)
