"""Comparisons say exactly what differs, and read nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlops_cli.hashing import hash_bytes
from mlops_cli.store.trees import (
    EMPTY_TREE,
    Change,
    Entry,
    diff,
    write_tree,
)
from tests.store.folders import (
    FILE,
    Leaf,
    Memory,
    as_leaf,
    build,
    digests,
    flatten,
    folders,
    large,
    small_leaves,
    steady,
)


@steady
@given(folders, folders)
def test_a_difference_applied_to_one_folder_gives_the_other(old, new):
    store = Memory()
    with small_leaves():
        found = diff(store, build(store, old).digest, build(store, new).digest)

    result = digests(flatten(old))
    for change in found.deleted:
        assert result.pop(change.path) == as_leaf(change.old)
    for change in found.modified:
        assert result[change.path] == as_leaf(change.old) != as_leaf(change.new)
        result[change.path] = as_leaf(change.new)
    for change in found.added:
        assert change.path not in result
        result[change.path] = as_leaf(change.new)
    assert result == digests(flatten(new))
    for part in found:
        assert [change.path for change in part] == sorted(change.path for change in part)


@steady
@given(folders)
def test_a_difference_from_nothing_is_everything(folder):
    store = Memory()
    root = build(store, folder).digest

    added, deleted = diff(store, None, root), diff(store, root, None)

    assert {change.path: as_leaf(change.new) for change in added.added} == digests(flatten(folder))
    assert {change.path: as_leaf(change.old) for change in deleted.deleted} == digests(flatten(folder))
    assert added.modified == added.deleted == deleted.added == deleted.modified == ()


def test_equal_trees_are_not_read():
    store = Memory()

    assert diff(store, EMPTY_TREE, EMPTY_TREE) == ((), (), ())
    assert diff(store, None, None) == ((), (), ())
    assert store.reads == []


def test_a_difference_reads_only_what_differs():
    store = Memory()
    same = {b"%d" % number: Leaf(FILE, b"x") for number in range(5)}
    old = build(store, {b"same": same, b"changed": {b"f": Leaf(FILE, b"1")}})
    new = build(store, {b"same": same, b"changed": {b"f": Leaf(FILE, b"2")}})
    store.reads.clear()

    found = diff(store, old.digest, new.digest)

    assert [change.path for change in found.modified] == [b"changed/f"]
    assert len(store.reads) == 4


def test_a_difference_between_large_folders_reads_only_unequal_leaves():
    store = Memory()
    old = write_tree(store, large(40_000))
    new = write_tree(store, large(40_000, skip=(17_000,)))
    store.reads.clear()

    found = diff(store, old.digest, new.digest)

    assert [change.path for change in found.deleted] == [b"image-017000.png"]
    assert found.added == found.modified == ()
    assert len(store.reads) <= 2 + 2 + 2


def test_a_folder_that_replaces_a_file_is_an_addition_and_a_deletion():
    store = Memory()
    old = build(store, {b"a": Leaf(FILE, b"x")})
    new = build(store, {b"a": {b"b": Leaf(FILE, b"x")}})

    found = diff(store, old.digest, new.digest)

    content = hash_bytes(b"x")
    assert found.deleted == (Change(b"a", Entry(b"a", 0, 1, 1, content), None),)
    assert found.added == (Change(b"a/b", None, Entry(b"b", 0, 1, 1, content)),)


@steady
@given(folders)
def test_a_folder_does_not_differ_from_itself(folder):
    store = Memory()
    with small_leaves():
        root, again = build(store, folder), build(Memory(), dict(reversed(folder.items())))
        store.reads.clear()

        assert again == root
        assert diff(store, root.digest, again.digest) == ((), (), ())
    assert store.reads == []


@steady
@given(st.sets(st.integers(0, 299)), st.sets(st.integers(0, 299), max_size=5), st.sets(st.integers(0, 299), max_size=5))
def test_no_more_is_read_than_the_difference_accounts_for(numbers, gone, changed):
    """One name more or less changes one leaf into one or two; the indices of both sides come on top, at each level."""
    store = Memory()
    old = {b"%03d" % number: Leaf(FILE, b"1") for number in numbers}
    new = {
        name: Leaf(FILE, b"2") if int(name) in changed else leaf for name, leaf in old.items() if int(name) not in gone
    }
    with small_leaves():
        kept = {b"kept": Leaf(FILE, b"1")}
        roots = [build(store, {b"same": old, b"deep": {b"er": {**folder, **kept}}}) for folder in (old, new)]
        store.reads.clear()
        found = diff(store, *(root.digest for root in roots))

    differing = sum(map(len, found))
    assert differing == len(numbers & (gone | changed))
    most = 2 * 3 + (3 * differing if len(new) > 3 else len(old | kept))  # a folder that is no longer cut is read whole
    assert len(store.reads) <= most * bool(differing)
