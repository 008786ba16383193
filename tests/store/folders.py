"""Folders as dictionaries, the trees that they make, and a store in memory that counts what is read."""

from __future__ import annotations

from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st

from mlops_cli.errors import MissingObject
from mlops_cli.hashing import hash_bytes
from mlops_cli.store import tree_edit, tree_format, tree_reading
from mlops_cli.store.trees import Entry, Kind, write_tree

FOLDER, FILE = Kind.FOLDER, Kind.FILE
steady = settings(deadline=None)  # a busy machine is no reason to fail


class Memory:
    """Objects in a dictionary, counting what is read."""

    def __init__(self):
        self.objects = {}
        self.reads = []

    def add_bytes(self, data):
        digest = hash_bytes(data)
        self.objects[digest] = data
        return digest

    def read(self, digest):
        self.reads.append(digest)
        if digest not in self.objects:
            raise MissingObject(f"`{digest}`")
        return self.objects[digest]


class Leaf(NamedTuple):
    """A file in a folder given as a dictionary."""

    kind: int
    content: bytes


def build(store, folder, name=b""):
    """Store a folder, given as a dictionary of names to dictionaries and `Leaf`s; return its entry."""
    entries = []
    for child, value in folder.items():
        if isinstance(value, dict):
            entries.append(build(store, value, child))
        else:
            kind, content = value
            entries.append(Entry(child, kind, len(content), 1, hash_bytes(content)))
    return write_tree(store, entries, name)


def flatten(folder, prefix=b""):
    """Return what a folder holds by path: files, links, and empty folders below it as None."""
    found = {}
    for name, value in folder.items():
        path = prefix + name
        if isinstance(value, dict):
            found.update(flatten(value, path + b"/") if value else {path: None})
        else:
            found[path] = value
    return found


def as_leaf(entry):
    return None if entry.kind == FOLDER else (entry.kind, entry.digest)


def digests(flat):
    return {path: value and (value[0], hash_bytes(value[1])) for path, value in flat.items()}


@contextmanager
def small_leaves(split_above=4, leaf_size=3):
    """Cut folders as if they were large."""
    with (
        mock.patch.object(tree_format, "SPLIT_ABOVE", split_above),
        mock.patch.object(tree_edit, "SPLIT_ABOVE", split_above),
        mock.patch.object(tree_reading, "SPLIT_ABOVE", split_above),
        mock.patch.object(tree_format, "LEAF_SIZE", leaf_size),
    ):
        yield


names = st.binary(min_size=1, max_size=2).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
leaves = (
    st.tuples(st.sampled_from([Kind.FILE, Kind.EXECUTABLE, Kind.SYMLINK]), st.binary(max_size=2))
    .filter(lambda pair: pair[0] != Kind.SYMLINK or pair[1])
    .map(lambda pair: Leaf(*pair))
)
folders = st.recursive(
    st.dictionaries(names, leaves, max_size=9),
    lambda inner: st.dictionaries(names, leaves | inner, max_size=9),
    max_leaves=20,
)
entries = st.builds(
    Entry,
    names,
    st.integers(0, 3),
    st.integers(0, 2**40),
    st.just(1),
    st.binary(max_size=3).map(hash_bytes),
).map(lambda entry: entry._replace(size=entry.size % 4095 + 1) if entry.kind == Kind.SYMLINK else entry)
listings = st.lists(entries, unique_by=lambda entry: entry.name, max_size=30)


def large(count, skip=()):
    content = hash_bytes(b"content")
    return [Entry(b"image-%06d.png" % number, 0, 10, 1, content) for number in range(count) if number not in skip]
