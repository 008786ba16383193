"""A merge takes what either side changed, loses nothing silently, and reads only what both sides changed."""

from __future__ import annotations

from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_cli.hashing import hash_bytes
from mlops_cli.store import tree_reading
from mlops_cli.store.tree_merge import Conflict, ConflictKind, merge
from mlops_cli.store.trees import (
    EMPTY_TREE,
    Entry,
    Kind,
    TreeError,
    decode_tree,
    find,
    read_tree,
    walk,
    write_tree,
)
from tests.store.folders import FILE, FOLDER, Leaf, Memory, build, large, small_leaves, steady

# Few names and contents, so that three folders have much in common and much to disagree on.
few_names = st.sampled_from([b"%c" % letter for letter in b"abcdefgh"])
few_leaves = st.builds(Leaf, st.sampled_from([Kind.FILE, Kind.EXECUTABLE, Kind.SYMLINK]), st.sampled_from([b"1", b"2"]))
few_folders = st.recursive(
    st.dictionaries(few_names, few_leaves, max_size=8),
    lambda inner: st.dictionaries(few_names, few_leaves | inner, max_size=8),
    max_leaves=12,
)


@st.composite
def versions(draw, folder):
    """Return a folder like the one given, with some names changed, gone or new, at any depth."""
    changed = dict(folder)
    for name in draw(st.lists(few_names, max_size=4)):
        value = changed.get(name)
        if isinstance(value, dict) and draw(st.booleans()):
            changed[name] = draw(versions(value))
        else:
            new = draw(st.none() | few_leaves | few_folders)
            changed.pop(name, None)
            if new is not None:
                changed[name] = new
    return changed


@st.composite
def threes(draw):
    """Return a folder and two versions of it."""
    base = draw(few_folders)
    return base, draw(versions(base)), draw(versions(base))


def merged(store, base, ours, theirs):
    """Merge folders given as dictionaries; return the merged entry and the conflicts."""
    roots = [build(store, folder).digest for folder in (base, ours, theirs)]
    return merge(store, store, *roots)


def flat(store, root):
    """Return a tree's files and links by path, and its folders."""
    walked = list(walk(store, root))
    files = {path: (entry.kind, entry.digest) for path, entry in walked if entry.kind != FOLDER}
    return files, {path for path, entry in walked if entry.kind == FOLDER}


def covered(path, conflicts):
    """Say whether a conflict is at a path, or above it."""
    return any(path == c.path or path.startswith(c.path + b"/") for c in conflicts)


def three_way(base, ours, theirs):
    """Return what three values come to, or `...` for a conflict."""
    if ours == theirs or theirs == base:
        return ours
    if ours == base:
        return theirs
    kinds = {side[0] for side in (base, ours, theirs) if side}
    if None in (base, ours, theirs) or not kinds <= {Kind.FILE, Kind.EXECUTABLE}:
        return ...
    parts = [three_way(*part) for part in zip(base, ours, theirs, strict=True)]
    return ... if ... in parts else tuple(parts)


# --- laws -----------------------------------------------------------------------------------------------------------


@steady
@given(few_folders, few_folders)
def test_what_only_one_side_changed_is_taken(base, other):
    store = Memory()
    with small_leaves():
        root, changed = build(store, base), build(store, other)

        for sides in ((changed, changed), (root, changed), (changed, root)):
            assert merge(store, store, root.digest, *(side.digest for side in sides)) == (changed, ())
        assert merge(store, store, None, changed.digest, changed.digest) == (changed, ())


@steady
@given(threes())
def test_sides_can_change_places(three):
    base, ours, theirs = three
    store = Memory()
    with small_leaves():
        folder, conflicts = merged(store, base, ours, theirs)
        swapped, others = merged(store, base, theirs, ours)
        files, folders = flat(store, folder.digest)
        swapped_files, swapped_folders = flat(store, swapped.digest)

    assert conflicts == tuple(c._replace(ours=c.theirs, theirs=c.ours) for c in others)
    assert [c.kind for c in conflicts] == [c.kind for c in others]
    if not conflicts:
        assert folder == swapped
    for one, other in ((files, swapped_files), (dict.fromkeys(folders), dict.fromkeys(swapped_folders))):
        assert {p: v for p, v in one.items() if not covered(p, conflicts)} == {
            p: v for p, v in other.items() if not covered(p, conflicts)
        }


@steady
@given(threes())
def test_each_path_is_merged_by_itself(three):
    store = Memory()
    with small_leaves():
        (folder, conflicts), sides = merged(store, *three), [flat(store, build(store, each).digest) for each in three]
        files, folders = flat(store, folder.digest)

    for path in {path for side, _ in sides for path in side}:
        expected = three_way(*(side.get(path) for side, _ in sides))
        if expected is ...:
            assert covered(path, conflicts), path
        elif not covered(path, conflicts):
            assert files.get(path) == expected, path
    for path in {path for _, side in sides for path in side}:
        if not covered(path, conflicts):
            stays = three_way(*(path in side for _, side in sides))
            holds = any(other.startswith(path + b"/") for other in (*files, *folders))
            assert (path in folders) == (stays or holds), path


@steady
@given(threes())
def test_a_conflict_is_where_two_sides_differ_from_the_base_and_from_each_other(three):
    store = Memory()
    with small_leaves():
        roots = [build(store, each).digest for each in three]
        folder, conflicts = merge(store, store, *roots)

        assert [c.path for c in conflicts] == sorted({c.path for c in conflicts})
        for conflict in conflicts:
            names = conflict.path.split(b"/")
            assert tuple(find(store, root, names) for root in roots) == conflict[1:]
            assert len(set(conflict[1:])) == 3
            assert find(store, folder.digest, names) == conflict.kept
            assert conflict.kept in (conflict.ours, conflict.theirs)
            assert conflict.kept is not None


@steady
@given(threes())
def test_nothing_is_lost_that_nobody_deleted(three):
    store = Memory()
    with small_leaves():
        folder, conflicts = merged(store, *three)
        base, ours, theirs, found = (
            {path for part in flat(store, root.digest) for path in part}
            for root in (*(build(store, each) for each in three), folder)
        )

    for path in (ours | theirs) - found:
        deleted = path in base and not (path in ours and path in theirs)
        assert deleted or covered(path, conflicts), path


@steady
@given(threes())
def test_a_merged_tree_is_the_one_that_a_rebuild_gives(three):
    store = Memory()

    def rebuilt(digest, name):
        entries = [
            rebuilt(entry.digest, entry.name) if entry.kind == FOLDER else entry for entry in read_tree(store, digest)
        ]
        return write_tree(Memory(), entries, name)

    with small_leaves():
        folder, _ = merged(store, *three)

        assert folder == rebuilt(folder.digest, b"")


@steady
@given(few_folders, few_folders)
def test_without_a_base_everything_is_new(ours, theirs):
    store = Memory()
    with small_leaves():
        nothing, *roots = [build(store, each).digest for each in ({}, ours, theirs)]

        assert merge(store, store, None, *roots) == merge(store, store, nothing, *roots)


# --- one path -------------------------------------------------------------------------------------------------------

ONE, TWO, THREE = (Leaf(FILE, digit) for digit in (b"1", b"2", b"3"))
RUN_ONE, RUN_TWO = (Leaf(Kind.EXECUTABLE, digit) for digit in (b"1", b"2"))
LINK = Leaf(Kind.SYMLINK, b"1")
NOTHING = None


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "result"),
    [
        (ONE, RUN_ONE, TWO, RUN_TWO),  # marked executable here, edited there
        (RUN_ONE, ONE, RUN_TWO, TWO),
        (ONE, RUN_TWO, TWO, RUN_TWO),
        (ONE, RUN_TWO, RUN_ONE, RUN_TWO),
        (ONE, NOTHING, {b"x": ONE}, {b"x": ONE}),  # deleted here, made a folder there
        ({b"x": ONE}, NOTHING, TWO, TWO),
        (NOTHING, {b"x": ONE}, {b"y": TWO}, {b"x": ONE, b"y": TWO}),
        (NOTHING, {}, {b"x": ONE}, {b"x": ONE}),
        (ONE, {b"x": ONE}, {b"y": TWO}, {b"x": ONE, b"y": TWO}),
        ({b"x": ONE}, {b"x": ONE, b"y": ONE}, {}, {b"y": ONE}),
        ({b"x": ONE, b"y": ONE}, {b"x": ONE}, {b"y": ONE}, {}),  # both kept the folder, nothing is left in it
        ({b"x": ONE}, NOTHING, {}, NOTHING),
        ({b"x": ONE}, NOTHING, {b"x": ONE, b"y": TWO}, {b"y": TWO}),  # deleted here, added to there
        ({}, NOTHING, {b"y": TWO}, {b"y": TWO}),
        ({b"d": {b"x": ONE}}, NOTHING, {b"d": {}}, NOTHING),
    ],
)
def test_what_goes_together(base, ours, theirs, result):
    store = Memory()
    sides = [{b"p": side, b"z": ONE} if side is not NOTHING else {b"z": ONE} for side in (base, ours, theirs)]
    expected = {b"p": result, b"z": ONE} if result is not NOTHING else {b"z": ONE}

    assert merged(store, *sides) == (build(store, expected), ())
    assert merged(store, sides[0], sides[2], sides[1]) == (build(store, expected), ())


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "kind", "kept"),
    [
        (ONE, TWO, THREE, ConflictKind.MODIFIED, TWO),
        (ONE, TWO, LINK, ConflictKind.MODIFIED, TWO),
        (ONE, RUN_TWO, THREE, ConflictKind.MODIFIED, RUN_TWO),
        (NOTHING, ONE, TWO, ConflictKind.ADDED, ONE),
        (NOTHING, ONE, RUN_ONE, ConflictKind.ADDED, ONE),
        ({b"x": ONE}, ONE, TWO, ConflictKind.ADDED, ONE),
        (ONE, NOTHING, TWO, ConflictKind.DELETED, TWO),
        (ONE, TWO, NOTHING, ConflictKind.DELETED, TWO),
        (ONE, NOTHING, RUN_ONE, ConflictKind.DELETED, RUN_ONE),
        (NOTHING, ONE, {}, ConflictKind.REPLACED, ONE),
        (NOTHING, {b"x": ONE}, TWO, ConflictKind.REPLACED, {b"x": ONE}),
        (ONE, TWO, {b"x": ONE}, ConflictKind.REPLACED, TWO),
        ({b"x": ONE}, TWO, {b"x": ONE, b"y": ONE}, ConflictKind.REPLACED, TWO),
    ],
)
def test_what_does_not_go_together(base, ours, theirs, kind, kept):
    store = Memory()
    sides = [{b"p": side, b"z": ONE} if side is not NOTHING else {b"z": ONE} for side in (base, ours, theirs)]

    folder, (conflict,) = merged(store, *sides)

    assert (conflict.path, conflict.kind) == (b"p", kind)
    assert folder == build(store, {b"p": kept, b"z": ONE})


def test_a_conflict_in_a_deleted_folder_is_about_the_file_that_changed():
    store = Memory()
    base = {b"d": {b"x": ONE, b"y": ONE}}

    folder, conflicts = merged(store, base, {}, {b"d": {b"x": TWO, b"y": ONE}})

    one, two = (Entry(b"x", FILE, 1, 1, hash_bytes(digit)) for digit in (b"1", b"2"))
    assert conflicts == (Conflict(b"d/x", one, None, two),)
    assert folder == build(store, {b"d": {b"x": TWO}})


# --- what is read and written ---------------------------------------------------------------------------------------


def with_digest(listing, number, digest=EMPTY_TREE):
    return [*listing[:number], listing[number]._replace(digest=digest), *listing[number + 1 :]]


def counted(store, base, ours, theirs):
    """Merge; return the result, how many objects were read, and the trees that were written."""
    batch = Memory()
    store.reads.clear()
    result = merge(store, batch, base and base.digest, ours.digest, theirs.digest)
    assert not batch.reads
    return result, len(set(store.reads)), batch.objects


def test_equal_sides_are_not_read_beyond_their_sums():
    store = Memory()
    one, two = write_tree(store, large(20_000)), write_tree(store, large(20_001))

    for base, ours, theirs in ((one, two, two), (one, one, two), (one, two, one)):
        result, read, written = counted(store, base, ours, theirs)
        assert (result.folder, read, written) == (two, 1, {})


def test_changes_in_different_leaves_of_a_large_folder_read_and_write_one_leaf():
    store = Memory()
    listing = large(40_000)
    base = write_tree(store, listing)
    ours = write_tree(store, with_digest(listing, 39_999))
    theirs = write_tree(store, with_digest(listing, 0))

    result, read, written = counted(store, base, ours, theirs)

    assert result == (write_tree(store, with_digest(with_digest(listing, 0), 39_999)), ())
    assert read == 3 + 2  # the indices; the leaf of the one file that is to be done to the other side, old and new
    assert len(written) == 2  # that leaf, which is there already, and the index


def test_many_changes_on_one_side_do_not_matter():
    store = Memory()
    listing = large(40_000)
    base = write_tree(store, listing)
    many = [entry._replace(digest=EMPTY_TREE) for entry in listing[:-1]] + listing[-1:]
    ours, theirs = write_tree(store, many), write_tree(store, with_digest(listing, 39_999))

    for sides in ((ours, theirs), (theirs, ours)):
        result, read, written = counted(store, base, *sides)
        assert result == (write_tree(store, [entry._replace(digest=EMPTY_TREE) for entry in listing]), ())
        assert read == 3 + 3
        assert len(written) == 2


def test_a_large_folder_that_one_side_deleted_is_not_read_but_for_what_changed():
    store = Memory()
    listing = large(40_000)
    big, changed = write_tree(store, listing, b"d"), write_tree(store, with_digest(listing, 5), b"d")
    base, ours, theirs = (write_tree(store, [entry] if entry else []) for entry in (big, None, changed))

    result, read, written = counted(store, base, ours, theirs)

    assert [conflict.path for conflict in result.conflicts] == [b"d/image-000005.png"]
    assert result.folder.files == 1
    assert read == 3 + 2 + 2
    assert len(written) == 2


def test_a_large_folder_that_both_sides_added_is_read_where_it_differs():
    store = Memory()
    listing = large(40_000)
    one, two = (
        write_tree(store, listing, b"d"),
        write_tree(store, [*listing, Entry(b"z", FILE, 1, 1, EMPTY_TREE)], b"d"),
    )
    ours, theirs = write_tree(store, [one]), write_tree(store, [two])

    result, read, written = counted(store, None, ours, theirs)

    assert result == (theirs, ())
    assert read <= 2 + 2 + 2
    assert len(written) <= 3


def test_folders_that_one_side_left_alone_are_not_opened():
    store = Memory()
    same = {b"%d" % number: ONE for number in range(5)}
    base = build(store, {b"a": {b"x": ONE}, b"b": {b"x": ONE}, b"same": same})
    ours = build(store, {b"a": {b"x": TWO}, b"b": {b"x": ONE}, b"same": same})
    theirs = build(store, {b"a": {b"x": ONE}, b"b": {b"x": TWO}, b"same": same})

    result, read, written = counted(store, base, ours, theirs)

    assert result == (build(store, {b"a": {b"x": TWO}, b"b": {b"x": TWO}, b"same": same}), ())
    assert read == 3
    assert len(written) == 1


def test_what_is_written_is_what_the_merged_tree_needs_and_children_come_first():
    store, batch = Memory(), Memory()
    sides = [{b"a": {b"b": {b"x": x, b"y": y}}, b"c": {b"z": ONE}} for x, y in ((ONE, ONE), (TWO, ONE), (ONE, TWO))]
    roots = [build(store, side).digest for side in sides]

    result = merge(store, batch, *roots)

    order = list(batch.objects)
    assert len(order) == 3
    assert order[-1] == result.folder.digest
    for above, below in ((2, 1), (1, 0)):
        held = decode_tree(batch.objects[order[above]], order[above])
        assert order[below] in {entry.digest for entry in held}


def test_a_merge_goes_as_deep_as_the_trees():
    store = Memory()

    def deep(folder):
        entry = build(store, folder, b"d")
        for _ in range(2040):
            entry = write_tree(store, [entry], b"d")
        return entry

    base, ours, theirs, both = (deep(side) for side in ({}, {b"x": ONE}, {b"y": ONE}, {b"x": ONE, b"y": ONE}))

    result = merge(store, store, base.digest, ours.digest, theirs.digest)

    assert result.folder == both._replace(name=b"")


# --- hostile trees --------------------------------------------------------------------------------------------------


def test_a_few_objects_do_not_stand_for_endless_work():
    store = Memory()

    def bomb(folder):
        for _ in range(30):
            folder = write_tree(store, [folder._replace(name=b"%d" % number) for number in range(10)])
        return folder

    base, ours, theirs = (bomb(build(store, folder)) for folder in ({}, {b"a": {}}, {b"b": {}}))

    with (
        mock.patch.object(tree_reading, "MOST_WITHOUT_FILES", 1000),
        pytest.raises(TreeError, match="more than 1,000 folders without files"),
    ):
        merge(store, store, base.digest, ours.digest, theirs.digest)


def test_a_folder_that_lies_about_what_is_beneath_is_refused():
    store = Memory()
    sides = [build(store, {b"x": leaf}, b"d") for leaf in (ONE, TWO, THREE)]
    base, ours, theirs = (write_tree(store, [side]) for side in sides)
    liar = write_tree(store, [sides[2]._replace(files=7)])

    assert len(merge(store, store, base.digest, ours.digest, theirs.digest).conflicts) == 1
    with pytest.raises(TreeError, match="sums up to files: 1"):
        merge(store, store, base.digest, ours.digest, liar.digest)
