"""Reading trees: one folder, one path, everything beneath, and all that a tree needs.

Trees are hostile input: a few objects that name one another could stand for any number of paths, so every tree must
have the totals that the entry above it says, and folders without files are counted.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import NamedTuple, Protocol

from mlops_cli.errors import MissingObject
from mlops_cli.hashing import Digest, hash_bytes
from mlops_cli.store.tree_format import (
    PATH_LIMIT,
    SPLIT_ABOVE,
    Columns,
    Entry,
    Index,
    Kind,
    Leaf,
    TreeError,
    cut,
    decode_columns,
    decode_tree,
    encode_entries,
    encoded_size,
    ends_leaf,
    totals,
    tree_error,
)

EMPTY_TREE = hash_bytes(encode_entries(()))
# Of folders that hold no file, however deep; those with files are no more than the totals allow.
MOST_WITHOUT_FILES = 1_000_000


class TreeSource(Protocol):
    """Where trees are read from: a store or a batch."""

    def read(self, digest: Digest) -> bytes: ...


class Named(NamedTuple):
    """A folder's tree and the totals that the entry above declares; the root has none above it."""

    digest: Digest
    declared: tuple[int, int] | None = None


def read_tree(store: TreeSource, digest: Digest) -> tuple[Entry, ...]:
    """Return all entries of a folder, those of its leaves joined; MissingObject, CorruptObject."""
    return read_folder(store, digest)


def read_folder(store: TreeSource, digest: Digest, declared: tuple[int, int] | None = None) -> tuple[Entry, ...]:
    """Return all entries of a folder; TreeError unless it has the bytes and files that are `declared`."""
    tree = open_tree(store, digest, declared)
    if not isinstance(tree, Index):
        return tree
    return tuple(entry for part in leaf_entries(store, digest, tree) for entry in part)


def leaf_entries(
    store: TreeSource, root: Digest, index: Index, leaves: Sequence[Leaf] | None = None
) -> Iterator[tuple[Entry, ...]]:
    """Yield the entries of some leaves of the folder `root`, or of all.

    TreeError unless they are what the index says, and cut where leaves end and nowhere else: a folder has one encoding.
    """
    for leaf in index.leaves if leaves is None else leaves:
        entries = decode_tree(store.read(leaf.digest), leaf.digest)
        if isinstance(entries, Index) or not entries:
            raise tree_error(root, f"leaf `{leaf.digest}` is none")
        if (entries[0].name, len(entries), *totals(entries)) != leaf[:4]:
            raise tree_error(root, f"leaf `{leaf.digest}` is not what the index says")
        after = bisect_right(index.leaves, leaf.first, key=itemgetter(0))
        is_last = after == len(index.leaves)
        if not is_last and entries[-1].name >= index.leaves[after].first:
            raise tree_error(root, f"leaf `{leaf.digest}` reaches into the next")
        if len(cut(entries)) != 1 or (not is_last and not ends_leaf(entries[-1].name)):
            raise tree_error(root, f"leaf `{leaf.digest}` does not end where one should")
        yield entries


def check_folder(store: TreeSource, folder: Entry) -> None:
    """Raise TreeError unless the tree of `folder` has the bytes and the number of files that the entry says."""
    open_columns(store, folder.digest, (folder.size, folder.files))


def open_tree(store: TreeSource, digest: Digest, declared: tuple[int, int] | None = None) -> tuple[Entry, ...] | Index:
    """Read a tree; TreeError unless it has the totals that what names it declares."""
    tree = open_columns(store, digest, declared)
    return tree if isinstance(tree, Index) else tree.entries()


def open_columns(store: TreeSource, digest: Digest, declared: tuple[int, int] | None = None) -> Columns | Index:
    """Read a tree as `open_tree` does, without making entries."""
    tree = decode_columns(store.read(digest), digest)
    if isinstance(tree, Index):
        found = totals(tree.leaves)
    elif len(tree.names) > SPLIT_ABOVE:
        raise tree_error(digest, "it has too many entries for one that is not cut into leaves")
    else:
        found = sum(tree.sizes), sum(tree.files)
    if declared is not None and found != declared:
        raise _other_totals(digest, found, declared)
    return tree


def read_totals(store: TreeSource, digest: Digest) -> tuple[int, int]:
    """Return the bytes and the number of the files of a folder; MissingObject, CorruptObject."""
    return tree_totals(open_tree(store, digest))


def tree_totals(tree: tuple[Entry, ...] | Index) -> tuple[int, int]:
    """Return the bytes and the number of the files that a folder's tree stands for."""
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


class Limits:
    """What one walk may meet: so many folders without files, and paths as long as a system can open."""

    def __init__(self, root: Digest) -> None:
        self._root = root
        self._left = MOST_WITHOUT_FILES

    def meet(self, path: bytes, entry: Entry | None, above: int = 0) -> None:
        """Count what was met, `above` bytes of `path` being no part of the tree; TreeError when that is too much."""
        if entry is None:
            return
        if len(path) - above > PATH_LIMIT:
            raise tree_error(self._root, f"it stands for a path of more than {PATH_LIMIT:,} bytes")
        if entry.files or entry.kind != Kind.FOLDER:
            return
        self._left -= 1
        if self._left < 0:
            raise tree_error(self._root, f"it stands for more than {MOST_WITHOUT_FILES:,} folders without files")


def find(store: TreeSource, root: Digest, parts: Sequence[bytes]) -> Entry | None:
    """Return the entry at a path below `root`, or None; one tree and at most one leaf is read per part."""
    entry = find_name(store, root, parts[0]) if parts else None
    for name in parts[1:]:
        if entry is None or entry.kind != Kind.FOLDER:
            return None
        entry = find_name(store, entry.digest, name, (entry.size, entry.files))
    return entry


def split_path(path: str) -> tuple[bytes, ...]:
    """Return the names of a posix path, as `find` takes them."""
    return tuple(os.fsencode(name) for name in path.split("/"))


def find_name(store: TreeSource, digest: Digest, name: bytes, declared: tuple[int, int] | None = None) -> Entry | None:
    """Return the entry of one name of a folder, or None; at most one leaf is read."""
    tree = open_tree(store, digest, declared)
    if isinstance(tree, Index):
        at = bisect_right(tree.leaves, name, key=itemgetter(0)) - 1
        if at < 0:
            return None
        (tree,) = leaf_entries(store, digest, tree, tree.leaves[at : at + 1])
    at = bisect_right(tree, name, key=itemgetter(0)) - 1
    return tree[at] if at >= 0 and tree[at].name == name else None


def find_names(store: TreeSource, folder: Named, names: Iterable[bytes]) -> dict[bytes, Entry]:
    """Return the entries of those of `names` that a folder has; of leaves, only those that may hold one are read."""
    tree = open_tree(store, *folder)
    wanted = set(names)
    if isinstance(tree, Index):
        numbers = {bisect_right(tree.leaves, name, key=itemgetter(0)) - 1 for name in wanted}
        leaves = [tree.leaves[number] for number in sorted(numbers) if number >= 0]
        tree = tuple(entry for part in leaf_entries(store, folder.digest, tree, leaves) for entry in part)
    return {entry.name: entry for entry in tree if entry.name in wanted}


def walk(store: TreeSource, root: Digest, prefix: bytes = b"") -> Iterator[tuple[bytes, Entry]]:
    """Yield every path below `root` with its entry, sorted within each folder, a folder before what is in it."""
    limits = Limits(root)
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
            below = read_folder(store, entry.digest, (entry.size, entry.files))
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
    entered[digest] = tree_totals(tree)
    if not isinstance(tree, Index):
        return [(digest, len(data))], iter(tree)
    entries: list[Entry] = []
    own = []
    for leaf, part in zip(tree.leaves, leaf_entries(store, digest, tree), strict=True):
        entries += part
        own.append((leaf.digest, encoded_size(part)))
    return [*own, (digest, len(data))], iter(entries)
