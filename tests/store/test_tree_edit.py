"""A changed tree is the tree of the changed folder, and little is read and written to get there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_cli.errors import UsageError
from mlops_cli.hashing import hash_bytes
from mlops_cli.store import tree_format
from mlops_cli.store.trees import (
    EMPTY_TREE,
    Entry,
    edit,
    graft,
    write_tree,
)
from tests.store.folders import (
    FILE,
    Leaf,
    Memory,
    build,
    folders,
    large,
    leaves,
    names,
    small_leaves,
    steady,
)


def set_path(folder, parts, value):
    """Do to a dictionary what `graft` does to a tree."""
    head, *rest = parts
    copy = dict(folder)
    if not rest:
        if value is None:
            copy.pop(head, None)
        else:
            copy[head] = value
        return copy
    below = copy.get(head)
    if value is None and not (isinstance(below, dict) and holds(below, rest)):
        return copy
    changed = set_path(below if isinstance(below, dict) else {}, rest, value)
    if changed or value is not None:
        copy[head] = changed
    else:
        copy.pop(head)
    return copy


def holds(folder, parts):
    for name in parts:
        if not isinstance(folder, dict) or name not in folder:
            return False
        folder = folder[name]
    return True


@steady
@given(folders, st.data())
def test_a_graft_equals_a_rebuild(folder, data):
    present = sorted(path for path, _ in paths_of(folder))
    path = data.draw(st.lists(names, min_size=1, max_size=3) | st.sampled_from(present or [[b"x"]]))
    value = data.draw(st.none() | leaves | folders)
    store = Memory()
    with small_leaves():
        root = build(store, folder)
        entry = None
        if isinstance(value, dict):
            entry = build(store, value)
        elif value is not None:
            entry = Entry(b"any", value[0], len(value[1]), 1, hash_bytes(value[1]))

        grafted = graft(store, store, root.digest, path, entry)
        rebuilt = build(store, set_path(folder, path, value))

    assert grafted == rebuilt


def paths_of(folder, prefix=()):
    for name, value in folder.items():
        yield [*prefix, name], value
        if isinstance(value, dict):
            yield from paths_of(value, (*prefix, name))


def test_removing_the_only_name_of_the_last_leaf_removes_the_leaf():
    store = Memory()
    listing = [Entry(b"\1", 0, 1, 1, EMPTY_TREE), Entry(b"\6", 0, 1, 1, EMPTY_TREE)]
    with small_leaves(split_above=0, leaf_size=1):
        root = write_tree(store, listing)

        root = graft(store, store, root.digest, [b"\6"], None)

        assert root == write_tree(store, listing[:1])


@steady
@given(st.lists(st.tuples(names, st.booleans()), max_size=40))
def test_many_grafts_in_a_row_equal_a_rebuild(steps):
    store = Memory()
    folder = {}
    root = None
    with small_leaves():
        for name, keep in steps:
            value = Leaf(FILE, name) if keep else None
            folder = set_path(folder, [name], value)
            entry = Entry(b"", FILE, len(name), 1, hash_bytes(name)) if keep else None
            root = graft(store, store, root and root.digest, [name], entry)

            assert root == build(store, folder)
            assert root.digest in store.objects


def test_a_graft_writes_only_what_is_above_the_path():
    store, batch = Memory(), Memory()
    root = build(store, {b"a": {b"b": {b"c": Leaf(FILE, b"1")}}, b"other": {b"x": Leaf(FILE, b"2")}})

    graft(store, batch, root.digest, [b"a", b"b", b"c"], Entry(b"c", FILE, 1, 1, hash_bytes(b"3")))

    assert len(batch.objects) == 3


def test_a_graft_into_a_large_folder_writes_one_leaf_and_the_index():
    store, batch = Memory(), Memory()
    root = write_tree(store, large(40_000))

    grafted = graft(store, batch, root.digest, [b"image-020000.png"], Entry(b"", FILE, 11, 1, EMPTY_TREE))

    assert len(batch.objects.keys() - store.objects.keys()) == 2
    assert (grafted.files, grafted.size) == (40_000, 400_001)


def test_a_graft_keeps_a_folder_that_is_added_empty():
    store = Memory()

    root = graft(store, store, None, [b"a", b"empty"], build(store, {}))

    assert root == build(store, {b"a": {b"empty": {}}})


def test_a_graft_refuses_a_bad_name():
    store = Memory()
    root = write_tree(store, large(9000))

    for base in (None, root.digest):
        with pytest.raises(UsageError):
            graft(store, store, base, [b".git"], Entry(b"", FILE, 1, 1, EMPTY_TREE))


def test_a_graft_reads_from_the_store_what_the_batch_lacks():
    store, batch = Memory(), Memory()
    root = build(store, {b"a": Leaf(FILE, b"1")})

    grafted = graft(store, batch, root.digest, [b"b"], Entry(b"", FILE, 1, 1, hash_bytes(b"2")))

    assert grafted.files == 2


# --- several names at once ------------------------------------------------------------------------------------------

some_changes = st.dictionaries(names, st.none() | leaves, max_size=12)


def as_changes(given_changes):
    return {
        name: leaf and Entry(b"", leaf.kind, len(leaf.content), 1, hash_bytes(leaf.content))
        for name, leaf in given_changes.items()
    }


@steady
@given(st.dictionaries(names, leaves, max_size=40), some_changes, some_changes)
def test_an_edit_equals_a_rebuild_whatever_came_first(folder, first, second):
    store = Memory()
    with small_leaves():
        root = build(store, folder)
        changed = {name: leaf for name, leaf in {**folder, **first, **second}.items() if leaf is not None}

        edited = edit(store, store, root.digest, as_changes(first))
        edited = edit(store, store, edited.digest, as_changes(second))

        assert edited == build(store, changed)
        assert edit(store, store, None, as_changes(changed)) == edited


def test_an_edit_of_a_large_folder_reads_and_writes_the_leaves_that_it_touches():
    store, batch = Memory(), Memory()
    listing = large(40_000)
    root = write_tree(store, listing)
    store.reads.clear()
    new = Entry(b"", FILE, 10, 1, EMPTY_TREE)

    edited = edit(store, batch, root.digest, {b"image-000001.png": new, b"image-000002.png": None, b"image-x.png": new})

    expected = [listing[0], listing[1]._replace(digest=EMPTY_TREE), *listing[3:], new._replace(name=b"image-x.png")]
    assert edited == write_tree(Memory(), expected)
    assert len(store.reads) == 3
    assert len(batch.objects) == 3


def test_a_leaf_that_loses_its_end_becomes_one_with_the_next():
    store, batch = Memory(), Memory()
    listing = large(40_000)
    root = write_tree(store, listing)
    last = next(entry.name for entry in listing if tree_format.ends_leaf(entry.name))
    store.reads.clear()

    edited = edit(store, batch, root.digest, {last: None})

    assert edited == write_tree(Memory(), [entry for entry in listing if entry.name != last])
    assert len(store.reads) == 3
    assert len(batch.objects) == 2


def test_a_large_folder_that_shrinks_is_in_one_piece_again():
    store = Memory()
    listing = large(9000)
    root = write_tree(store, listing)

    edited = edit(store, store, root.digest, dict.fromkeys((entry.name for entry in listing[8000:]), None))

    assert edited == write_tree(Memory(), listing[:8000])
    assert edit(store, store, root.digest, dict.fromkeys((entry.name for entry in listing), None)).files == 0


def test_a_graft_reads_each_tree_once():
    store = Memory()
    inner = write_tree(store, large(20_000), b"inner")
    root = write_tree(store, [inner, *large(20_000)])
    store.reads.clear()

    graft(store, Memory(), root.digest, [b"inner", b"image-000007.png"], Entry(b"", FILE, 1, 1, EMPTY_TREE))

    assert len(store.reads) == len(set(store.reads)) == 4
