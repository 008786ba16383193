"""Reading finds every path once, however deep, and meets no more than a tree may stand for."""

from __future__ import annotations

import pytest
from hypothesis import given

from mlops_cli.hashing import hash_bytes
from mlops_cli.store.trees import (
    EMPTY_TREE,
    Entry,
    Index,
    TreeError,
    decode_tree,
    diff,
    find,
    read_tree,
    totals,
    tree_objects,
    walk,
    write_tree,
)
from tests.store.folders import (
    FILE,
    FOLDER,
    Leaf,
    Memory,
    as_leaf,
    build,
    digests,
    flatten,
    folders,
    small_leaves,
    steady,
)


@steady
@given(folders)
def test_a_walk_meets_every_path_once_and_folders_first(folder):
    store = Memory()
    with small_leaves():
        root = build(store, folder)
        walked = list(walk(store, root.digest, b"data"))

    paths = [path for path, _ in walked]
    filled = {path for path, entry in walked if entry.kind == FOLDER and entry.digest != EMPTY_TREE}
    found = {path.removeprefix(b"data/"): as_leaf(entry) for path, entry in walked if path not in filled}
    assert found == digests(flatten(folder))
    assert len(set(paths)) == len(paths)
    assert all(path.rpartition(b"/")[0] in (b"data", *paths[:position]) for position, path in enumerate(paths))
    assert totals([entry for _, entry in walked if entry.kind != FOLDER]) == (root.size, root.files)


@steady
@given(folders)
def test_every_walked_path_can_be_found(folder):
    store = Memory()
    with small_leaves():
        root = build(store, folder)

        for path, entry in walk(store, root.digest):
            assert find(store, root.digest, path.split(b"/")) == entry
        assert find(store, root.digest, [b"no such name"]) is None
        assert find(store, root.digest, [b"\0"]) is None


def test_nothing_is_found_below_a_file():
    store = Memory()
    root = build(store, {b"a": Leaf(FILE, b"x")})

    assert find(store, root.digest, [b"a", b"b"]) is None


def test_a_walk_goes_as_deep_as_the_tree():
    store = Memory()
    entry = build(store, {b"x": Leaf(FILE, b"x")}, b"d")
    for _ in range(2046):
        entry = write_tree(store, [entry], b"d")

    assert sum(1 for _ in walk(store, entry.digest)) == 2047
    assert sum(1 for _ in tree_objects(store, entry.digest)) == 2048
    assert len(diff(store, None, entry.digest).added) == 1


def test_no_path_is_longer_than_a_system_can_open():
    store = Memory()
    entry = build(store, {b"x" * 255: Leaf(FILE, b"x")}, b"d" * 255)
    for _ in range(14):
        entry = write_tree(store, [entry], b"d" * 255)
    fits = write_tree(store, [entry])
    root = write_tree(store, [write_tree(store, [entry], b"d")])

    assert [len(path) for path, _ in walk(store, fits.digest)][-1] == 4095
    assert len(diff(store, fits.digest, None).deleted) == 1
    for old, new in ((root.digest, None), (None, root.digest)):
        with pytest.raises(TreeError, match="it stands for a path of more than 4,095 bytes"):
            diff(store, old, new)
    with pytest.raises(TreeError, match="it stands for a path of more than 4,095 bytes"):
        list(walk(store, root.digest))


@steady
@given(folders)
def test_the_objects_of_a_tree_are_all_it_needs_in_an_order_to_store_them(folder):
    store = Memory()
    with small_leaves():
        root = build(store, folder)
        listed = list(tree_objects(store, root.digest))

    contents = {hash_bytes(value[1]): len(value[1]) for value in flatten(folder).values() if value}
    assert listed[-1][0] == root.digest
    assert len({digest for digest, _ in listed}) == len(listed)
    reachable = {**contents, **{digest: len(data) for digest, data in store.objects.items()}}
    assert dict(listed).keys() <= reachable.keys()
    assert all(reachable[digest] == size for digest, size in listed)
    assert contents.keys() <= dict(listed).keys()
    partial = Memory()
    with small_leaves():
        for digest, _ in listed:  # a store that gets them in this order can read every tree it holds
            if digest in store.objects:
                partial.objects[digest] = store.objects[digest]
                if isinstance(decode_tree(store.objects[digest], digest), Index):
                    read_tree(partial, digest)


def test_a_blob_that_is_a_copy_of_a_tree_does_not_hide_the_tree():
    store = Memory()
    inner = build(store, {b"x": Leaf(FILE, b"content")}, b"z")
    copy = Entry(b"a", FILE, len(store.objects[inner.digest]), 1, inner.digest)
    root = write_tree(store, [copy, inner])

    assert hash_bytes(b"content") in dict(tree_objects(store, root.digest))
