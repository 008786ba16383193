"""Changing trees: a change at some paths reads and writes only the folders above them, and of a large one some leaves.

What comes out is the tree that building the folder anew would give, byte for byte.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Protocol

from mlops_cli.errors import MissingObject
from mlops_cli.hashing import Digest
from mlops_cli.store.tree_format import (
    SPLIT_ABOVE,
    Entry,
    Index,
    Kind,
    Leaf,
    check_entries,
    cut,
    decode_tree,
    encode_index,
    encode_leaf,
    encode_tree,
    ends_leaf,
    totals,
)
from mlops_cli.store.tree_reading import EMPTY_TREE, TreeSource, check_folder, find_name, leaf_entries, tree_totals


class TreeTarget(TreeSource, Protocol):
    """Where trees are written to: a batch."""

    def add_bytes(self, data: bytes) -> Digest: ...


def write_tree(batch: TreeTarget, entries: Sequence[Entry], name: bytes = b"") -> Entry:
    """Add a folder's tree to a batch and return the folder's entry."""
    *_, digest = [batch.add_bytes(data) for _, data in encode_tree(entries)]
    return Entry(name, Kind.FOLDER, *totals(entries), digest)


def edit(store: TreeSource, batch: TreeTarget, folder: Digest | None, changes: Mapping[bytes, Entry | None]) -> Entry:
    """Return the entry, without a name, of `folder` with each name in `changes` given its entry, or none.

    Of a folder in leaves only those are read and written that hold these names, and the next where a leaf has lost its
    end. New trees go to `batch`. UsageError for a name that no folder can have.
    """
    if folder is None:
        return write_tree(batch, _with((), changes))
    tree = decode_tree(store.read(folder), folder)
    if not isinstance(tree, Index):
        return write_tree(batch, _with(tree, changes))
    parts = list(_edited(store, folder, tree, changes))
    if sum(part.entries if isinstance(part, Leaf) else len(part) for part in parts) <= SPLIT_ABOVE:
        whole = (next(leaf_entries(store, folder, tree, [part])) if isinstance(part, Leaf) else part for part in parts)
        return write_tree(batch, [entry for part in whole for entry in part])
    leaves = []
    for part in parts:
        if isinstance(part, Leaf):
            leaves.append(part)
            continue
        check_entries(part)
        leaf, data = encode_leaf(part)
        batch.add_bytes(data)
        leaves.append(leaf)
    return _entry_of(Index(tuple(leaves)), batch.add_bytes(encode_index(leaves)))


def _edited(
    store: TreeSource, folder: Digest, index: Index, changes: Mapping[bytes, Entry | None]
) -> Iterator[Leaf | Sequence[Entry]]:
    """Yield the leaves of a folder as they become: as they are, or as the entries of a new one."""
    touched: defaultdict[int, dict[bytes, Entry | None]] = defaultdict(dict)
    leaves = index.leaves
    for name, entry in changes.items():
        touched[max(bisect_right(leaves, name, key=itemgetter(0)) - 1, 0)][name] = entry
    carried: Sequence[Entry] = ()  # what lost the end of its leaf, and belongs to the next
    for number, leaf in enumerate(leaves):
        if not carried and number not in touched:
            yield leaf
            continue
        (entries,) = leaf_entries(store, folder, index, [leaf])
        is_last = number + 1 == len(leaves)
        parts = cut([*carried, *_with(entries, touched.get(number, {}))])
        carried = () if is_last or not parts or ends_leaf(parts[-1][-1].name) else parts.pop()
        yield from parts


def _with(entries: Sequence[Entry], changes: Mapping[bytes, Entry | None]) -> Sequence[Entry]:
    """Return sorted entries with those of some names replaced."""
    if not changes:
        return entries
    kept = [entry for entry in entries if entry.name not in changes]
    new = [entry._replace(name=name) for name, entry in changes.items() if entry is not None]
    return sorted([*kept, *new], key=itemgetter(0))


def graft(
    store: TreeSource, batch: TreeTarget, root: Digest | None, parts: Sequence[bytes], entry: Entry | None
) -> Entry:
    """Return the entry, without a name, of `root` with the path `parts` replaced by `entry`, or removed without one.

    Folders on the way are made, and removed when nothing is left in them; a file in the way gives place to a folder.
    New trees go to `batch`; `store` is asked for what the batch cannot give, once for each tree.
    """
    source = _Either(batch, store)
    folders = _folders_on_the_way(source, root, parts)
    if entry is None and (folders[-1] is None or find_name(source, folders[-1], parts[-1]) is None):
        return summary(source, batch, root)
    changed: Entry | None = entry
    for position in range(len(parts) - 1, -1, -1):
        folder = edit(source, batch, folders[position], {parts[position]: changed})
        changed = None if entry is None and folder.digest == EMPTY_TREE else folder
    return folder


def _folders_on_the_way(store: TreeSource, root: Digest | None, parts: Sequence[bytes]) -> list[Digest | None]:
    """Return the tree that holds each part of a path, None where there is none."""
    folders = [root]
    for name in parts[:-1]:
        holder = folders[-1]
        found = find_name(store, holder, name) if holder else None
        if found is not None and found.kind == Kind.FOLDER:
            check_folder(store, found)
            folders.append(found.digest)
        else:
            folders.append(None)
    return folders


def summary(store: TreeSource, batch: TreeTarget, root: Digest | None) -> Entry:
    """Return the entry, without a name, of a folder as it is; without a digest, of an empty one."""
    if root is None:
        return write_tree(batch, ())
    return _entry_of(decode_tree(store.read(root), root), root)


def _entry_of(tree: tuple[Entry, ...] | Index, digest: Digest) -> Entry:
    return Entry(b"", Kind.FOLDER, *tree_totals(tree), digest)


class _Either:
    """Reads what a batch has not published yet, and everything else from where trees were read before; each once."""

    def __init__(self, first: TreeSource, second: TreeSource) -> None:
        self._first = first
        self._second = second
        self._read: dict[Digest, bytes] = {}

    def read(self, digest: Digest) -> bytes:
        data = self._read.get(digest)
        if data is None:
            try:
                data = self._first.read(digest)
            except MissingObject:
                data = self._second.read(digest)
            self._read[digest] = data
        return data
