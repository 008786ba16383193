"""What is away of a recorded folder stays in it, what is here counts, and what is away is not read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_cli.errors import MissingObject
from mlops_cli.hashing import hash_bytes
from mlops_cli.store.trees import Entry, Extent, Kind, Obstructed, overlay, write_tree
from tests.store.folders import FILE, Leaf, Memory, build, flatten, folders, large, leaves, names, small_leaves, steady

A, B, C = (Leaf(FILE, text) for text in (b"a", b"b", b"c"))


def above(path):
    return [path[:at] for at in range(len(path)) if path[at : at + 1] == b"/"]


def every(folder):
    """Return the paths of files and folders."""
    flat = flatten(folder)
    return {*flat, *(place for path in flat for place in above(path))}


def unflatten(flat):
    root = {}
    for path, value in flat.items():
        *parents, name = path.split(b"/")
        folder = root
        for parent in parents:
            folder = folder.setdefault(parent, {})
        folder[name] = {} if value is None else value
    return root


def expect(recorded, present, extent):
    """Return by paths what an overlay comes to, or None when a file and a folder are in each other's place."""
    old, new = flatten(recorded), flatten(present)
    away = {path: value for path, value in old.items() if not extent.has(path) and path not in new}
    whole = {*away, *(place for path in away for place in above(path))}
    taken = {*new, *(place for path in new for place in above(path))}
    if any(value is not None and path in whole for path, value in new.items()):
        return None
    if any(value is not None and path in taken for path, value in away.items()):
        return None
    kept = {path: value for path, value in new.items() if not (value is None and path in whole)}
    return {**{path: value for path, value in away.items() if path not in taken}, **kept}


def changed(folder, data):
    """Return a folder like `folder`, from which some is gone, and to which some has come."""
    result = {}
    for name, value in folder.items():
        what = data.draw(st.sampled_from(["keep", "keep", "drop", "replace"]))
        if what == "keep":
            result[name] = changed(value, data) if isinstance(value, dict) else value
        elif what == "replace":
            result[name] = data.draw(leaves)
    return {**result, **data.draw(st.dictionaries(names, leaves, max_size=2))}


@steady
@given(folders, st.data())
def test_it_is_the_tree_of_what_is_here_and_what_is_away(recorded, data):
    present = changed(recorded, data)
    paths = sorted(every(recorded) | every(present))
    rules = data.draw(st.dictionaries(st.sampled_from(paths), st.booleans(), max_size=4)) if paths else {}
    extent = Extent(data.draw(st.booleans())).marked([path for path, here in rules.items() if here], here=True)
    extent = extent.marked([path for path, here in rules.items() if not here], here=False)
    store = Memory()
    with small_leaves():
        old, new = build(store, recorded), build(store, present)
        wanted = expect(recorded, present, extent)
        try:
            found = overlay(store, store, old, new, extent)
        except Obstructed:
            both = {
                path
                for path in every(recorded) & every(present)
                if is_folder(recorded, path) != is_folder(present, path)
            }
            assert both
            return
        assert wanted is not None
        assert found.entry == build(store, unflatten(wanted))
        # What came is here from now on, and nothing else: the same again finds nothing new to be here.
        again = overlay(store, store, found.entry, new, extent.marked(found.came, here=True))
        assert again.entry == found.entry
        for path in found.came:
            assert path == b"" or path in every(present)


def is_folder(folder, path):
    for name in path.split(b"/"):
        folder = folder[name]
    return isinstance(folder, dict)


def test_what_is_away_is_not_read():
    store = Memory()
    listing = large(40_000)
    root = write_tree(store, [*listing, build(store, {b"x": A}, b"sub")])
    part = write_tree(Memory(), listing[:1])
    store.objects[part.digest] = b""
    here = Memory()
    present = write_tree(here, listing[:1])
    store.objects |= here.objects
    index = store.objects[root.digest]
    needed = {root.digest: index, present.digest: store.objects[present.digest]}
    store.reads.clear()

    found = overlay(store, store, root, present, Extent(here=False).marked([listing[0].name], here=True))

    assert found.entry._replace(name=b"") == root._replace(name=b"")
    assert len(set(store.reads) - needed.keys()) == 1  # a leaf


def test_a_listing_on_the_way_that_is_not_here():
    store = Memory()
    root = build(store, {b"a": {b"b": A}, b"c": C})
    present = build(store, {b"a": {b"new": B}})
    del store.objects[build(Memory(), {b"b": A}).digest]

    with pytest.raises(MissingObject):
        overlay(store, store, root, present, Extent(here=False))


def test_a_folder_that_is_deleted_below_what_is_away():
    store = Memory()
    root = build(store, {b"a": {b"here": A, b"away": B}})

    found = overlay(store, store, root, build(store, {}), Extent().marked([b"a/away"], here=False))

    assert found.entry == build(store, {b"a": {b"away": B}})


def test_a_folder_of_which_all_is_deleted_is_gone():
    store = Memory()
    root = build(store, {b"a": {b"x": A}, b"b": B})
    extent = Extent(here=False).marked([b"a/x"], here=True)

    assert overlay(store, store, root, build(store, {}), extent).entry == build(store, {b"b": B})
    emptied = build(store, {b"a": {}})
    assert overlay(store, store, root, emptied, extent).entry == build(store, {b"a": {}, b"b": B})


def test_a_file_in_place_of_a_folder_that_is_away():
    store = Memory()
    root = build(store, {b"a": {b"b": A}})
    present = build(store, {b"a": B})

    with pytest.raises(Obstructed) as caught:
        overlay(store, store, root, present, Extent(here=False))

    assert caught.value.path == b"a"
    whole = overlay(store, store, root, present, Extent())
    assert whole.entry == present


def test_what_has_come_is_as_large_as_can_be():
    store = Memory()
    root = build(store, {b"a": {b"x": A, b"y": B}, b"b": {b"x": A}})
    present = build(store, {b"a": {b"x": A}, b"b": {b"x": A}, b"new": {b"deep": {b"f": C}}})

    found = overlay(store, store, root, present, Extent(here=False))

    assert found.came == (b"a/x", b"b", b"new")


def test_alone():
    store = Memory()
    file = Entry(b"f", Kind.FILE, 1, 1, hash_bytes(b"a"))
    other = file._replace(digest=hash_bytes(b"b"))
    away, here = Extent(here=False), Extent()

    assert overlay(store, store, file, None, away).entry == file
    assert overlay(store, store, file, None, here).entry is None
    assert overlay(store, store, file, other, away) == (other, (b"",))
    assert overlay(store, store, file, other, here) == (other, ())
    assert overlay(store, store, file, None, Extent(here=False, rules={b"x": True})).entry == file


# Extents -------------------------------------------------------------------------------------------------------------

some_paths = st.lists(st.sampled_from([b"a", b"a/b", b"a/b/c", b"a-b", b"a0", b"ab", b"b/c"]), unique=True)


@given(st.booleans(), st.lists(st.tuples(some_paths, st.booleans()), max_size=4))
def test_the_last_mark_counts(root, marks):
    extent = Extent(root)
    for paths, here in marks:
        extent = extent.marked(paths, here=here)
    for path in (b"", b"a", b"a/b", b"a/b/c", b"a/x", b"a-b", b"a0", b"ab", b"b", b"b/c", b"b/c/d"):
        said = [here for paths, here in marks if {path, *above(path)} & set(paths)]
        assert extent.has(path) == (said[-1] if said else root)
        assert extent.below(path).has(b"") == extent.has(path)
        for name in (b"a", b"b", b"c"):
            inner = path + b"/" + name if path else name
            assert extent.below(path).has(name) == extent.has(inner)
    assert extent.whole == (extent == Extent())
    cleared = extent.replaced(b"a", Extent())
    assert cleared.has(b"a/b/c")
    assert cleared.replaced(b"a", extent.below(b"a")) == extent
    assert not [rule for rule in extent.without(b"a").rules if rule == b"a" or rule.startswith(b"a/")]
