"""Trees are canonical, and hostile bytes are refused before anything is built."""

from __future__ import annotations

import struct
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_cli.errors import CorruptObject, UsageError
from mlops_cli.hashing import hash_bytes, raw_digest
from mlops_cli.store import tree_format, tree_reading
from mlops_cli.store.trees import (
    EMPTY_TREE,
    Entry,
    Index,
    Kind,
    TreeError,
    check_folder,
    check_links,
    decode_tree,
    diff,
    edit,
    encode_files,
    encode_tree,
    find,
    graft,
    read_link,
    read_tree,
    tree_objects,
    walk,
    write_tree,
)
from tests.store.folders import (
    FILE,
    FOLDER,
    Leaf,
    Memory,
    build,
    large,
    listings,
    small_leaves,
    steady,
)

# --- one encoding ---------------------------------------------------------------------------------------------------


@steady
@given(listings, st.randoms(use_true_random=False))
def test_the_order_of_entries_does_not_matter(listing, random):
    shuffled = list(listing)
    random.shuffle(shuffled)

    assert encode_tree(shuffled) == encode_tree(listing)


@steady
@given(listings)
def test_files_are_encoded_without_making_entries(listing):
    files = [entry._replace(files=1) for entry in listing if entry.kind != FOLDER]
    columns = [(entry.name, entry.kind, entry.size, raw_digest(entry.digest)) for entry in reversed(files)]

    assert not files or encode_tree(files) == (encode_files(columns),)


def test_files_are_refused_like_entries():
    columns = (b"a", FILE, 1, raw_digest(EMPTY_TREE))

    for bad in ((b".git", *columns[1:]), columns, (b"b", FILE, 2**63 - 1, columns[3])):
        with pytest.raises(UsageError):
            encode_files([columns, bad])


@steady
@given(listings)
def test_what_is_decoded_is_what_was_encoded(listing):
    ((digest, data),) = encode_tree(listing)

    assert hash_bytes(data) == digest
    assert decode_tree(data, digest) == tuple(sorted(listing))
    assert tree_format.encoded_size(listing) == len(data)


@steady
@given(listings, st.sets(st.integers(0, 40)), st.sampled_from(["size", "kind", "digest"]))
def test_columns_say_which_entries_differ(listing, numbers, what):
    other = {"size": 7777, "kind": Kind.EXECUTABLE, "digest": hash_bytes(b"other")}[what]
    files = [entry._replace(kind=FILE, files=1) for entry in sorted(listing)]
    changed = [e._replace(**{what: other}) if n in numbers else e for n, e in enumerate(files)]
    before, after = (tree_format.decode_columns(*reversed(encode_tree(side)[0])) for side in (files, changed))

    differing = [number for number, pair in enumerate(zip(files, changed, strict=True)) if pair[0] != pair[1]]
    assert before.unlike(after) == differing
    assert after.entries() == tuple(changed)
    assert [after.entry(number) for number in differing] == [changed[number] for number in differing]


@steady
@given(listings)
def test_a_folder_in_leaves_reads_like_one_that_is_not(listing):
    store = Memory()
    with small_leaves():
        folder = write_tree(store, listing)

        assert read_tree(store, folder.digest) == tuple(sorted(listing))
        assert isinstance(decode_tree(store.objects[folder.digest], folder.digest), Index) == (len(listing) > 4)


def test_the_bytes_are_those_that_the_format_says():
    digest = hash_bytes(b"content")
    raw = bytes.fromhex(digest.removeprefix("blake3:"))

    ((_, data),) = encode_tree([Entry(b"b", 3, 20, 2, digest), Entry(b"a", 1, 7, 1, digest)])

    fields = struct.pack("<4sBBI", b"MLXT", 1, 0, 2) + bytes([1, 3]) + struct.pack("<4Q", 7, 20, 1, 2)
    assert data == fields + raw + raw + b"a\0b"


def test_an_empty_folder_has_a_digest_of_its_own():
    ((digest, data),) = encode_tree([])

    assert digest == EMPTY_TREE
    assert decode_tree(data, digest) == ()


def test_the_digest_of_a_tree_never_changes():
    entry = Entry(b"a", Kind.FILE, 1, 1, hash_bytes(b"x"))

    assert EMPTY_TREE == "blake3:187afb165e9e416876fd0db154cd456cf9035550b38c9515614e3f84e274aab9"
    assert encode_tree([entry])[-1][0] == "blake3:79240bdea06420a53f559d63f75572852597375f25e827c9efae8c5bcec9948e"


def test_names_are_bytes_and_need_not_be_text():
    store = Memory()
    folder = build(store, {b"\xff\xfe": Leaf(FILE, b"x"), "é".encode(): Leaf(FILE, b"y")})

    assert [entry.name for entry in read_tree(store, folder.digest)] == ["é".encode(), b"\xff\xfe"]


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b".",
        b"..",
        b"a/b",
        b"/",
        b"a\0b",
        b"\0",
        b".git",
        b".GIT",
        b".git ",
        b"git~1",
        ".g\u200cit".encode(),
        b"n" * 256,
    ],
)
def test_names_that_no_folder_can_have_are_refused(name):
    with pytest.raises(UsageError) as caught:
        encode_tree([Entry(b"fine", 0, 1, 1, EMPTY_TREE), Entry(name, 0, 1, 1, EMPTY_TREE)])

    assert caught.value.hint


def test_a_name_that_is_both_file_and_folder_is_refused():
    with pytest.raises(UsageError, match="`a` occurs twice"):
        encode_tree([Entry(b"a", FILE, 1, 1, EMPTY_TREE), Entry(b"a", FOLDER, 0, 0, EMPTY_TREE)])


# --- leaves ---------------------------------------------------------------------------------------------------------


def leaves_of(listing):
    return {digest for digest, _ in encode_tree(listing)[:-1]}


def test_only_a_large_folder_is_cut():
    assert len(encode_tree(large(8192))) == 1
    assert len(encode_tree(large(8193))) > 2


@pytest.mark.parametrize("change", ["add", "remove", "replace"])
def test_one_change_in_a_large_folder_keeps_most_leaves(change):
    listing = large(40_000)
    changed = {
        "add": [*listing, Entry(b"image-000000a.png", 0, 10, 1, EMPTY_TREE)],
        "remove": listing[:20_000] + listing[20_001:],
        "replace": [*listing[:-1], listing[-1]._replace(digest=EMPTY_TREE)],
    }[change]

    before, after = leaves_of(listing), leaves_of(changed)

    assert len(before) > 4
    assert len(before - after) <= 2
    assert len(after - before) <= 2


def test_a_name_is_found_by_reading_one_leaf():
    store = Memory()
    folder = write_tree(store, large(20_000))
    store.reads.clear()

    entry = find(store, folder.digest, [b"image-012345.png"])

    assert entry is not None
    assert entry.name == b"image-012345.png"
    assert len(store.reads) == 2


# --- hostile bytes --------------------------------------------------------------------------------------------------


def refuse(data):
    with pytest.raises(TreeError) as caught:
        decode_tree(data, hash_bytes(data))
    assert isinstance(caught.value, CorruptObject)
    assert hash_bytes(data) in caught.value.message
    assert caught.value.hint
    return caught.value.message


def tree_bytes(names, kinds=None, files=None, count=None, form=0, version=1, magic=b"MLXT", sizes=None):
    number = len(names)
    head = struct.pack("<4sBBI", magic, version, form, number if count is None else count)
    columns = bytes(kinds or [0] * number) + struct.pack(f"<{number}Q", *(sizes or [1] * number))
    columns += struct.pack(f"<{number}Q", *(files or [1] * number))
    return head + columns + b"d" * 32 * number + b"\0".join(names)


def test_the_bytes_that_the_hostile_ones_differ_from_are_a_tree():
    assert len(decode_tree(tree_bytes([b"a", b"b"]), EMPTY_TREE)) == 2


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "too short"),
        (b"MLXT\1\0", "too short"),
        (b"hello, I am a text file", "does not begin as one"),
        (tree_bytes([b"a"], magic=b"MLXP"), "does not begin as one"),
        (tree_bytes([b"a"], form=2), "does not begin as one"),
        (tree_bytes([b"a"], version=2), "version 2"),
        (tree_bytes([b"a"], version=0), "version 0"),
        (tree_bytes([], count=2**32 - 1), "lists more than 262,144 names"),
        (tree_bytes([], count=2**18 + 1, form=1), "lists more than 262,144 names"),
        (tree_bytes([], count=2**18), "length does not fit"),
        (tree_bytes([], count=2**18, form=1), "length does not fit"),
        (tree_bytes([b"a"], count=2), "length does not fit"),
        (tree_bytes([b"a", b"b"], count=1), "names"),
        (tree_bytes([]) + b"x", "length does not fit"),
        (tree_bytes([], form=1), "a leaf is empty"),
        (tree_bytes([b"b", b"a"]), "out of order"),
        (tree_bytes([b"a", b"a"]), "occurs twice"),
        (tree_bytes([b"", b"abc"]), "a name is empty"),
        (tree_bytes([b"a", b"b"], kinds=[3, 3], files=[2**63, 2**63]), "more than a tree can say"),
        (tree_bytes([b"a\0b"]), "names do not fit"),
        (tree_bytes([b"a/b"]), "holds `/`"),
        (tree_bytes([b"..", b"a"]), "cannot be names"),
        (tree_bytes([b"."]), "cannot be names"),
        (tree_bytes([b"a", b"n" * 256]), "a name has more than 255 bytes"),
        (tree_bytes([b"a"], kinds=[2], sizes=[0]), "a symbolic link's target has no bytes"),
        (tree_bytes([b"a"], kinds=[2], sizes=[4096]), "a symbolic link's target has no bytes, or more than 4,095"),
        (tree_bytes([b".Git"]), "belongs to Git"),
        (tree_bytes([b"a"], kinds=[4]), "unknown kind"),
        (tree_bytes([b"a"], files=[2]), "more or less than one"),
        (tree_bytes([b"a"], kinds=[2], files=[0]), "more or less than one"),
    ],
)
def test_bytes_that_are_no_tree_are_refused(data, says):
    assert says in refuse(data)


@steady
@given(listings, st.data())
def test_every_truncation_is_refused(listing, data):
    ((_, whole),) = encode_tree(listing)
    cut = data.draw(st.integers(0, len(whole) - 1))

    # Cutting the last name short leaves a tree of other names, which has another digest.
    if listing and cut > len(whole) - len(max(listing).name):
        return
    refuse(whole[:cut])


@steady
@given(st.binary(max_size=300))
def test_any_bytes_are_a_tree_or_refused(noise):
    for data in (noise, b"MLXT\1\0" + noise, b"MLXT\1\1" + noise):
        try:
            decoded = decode_tree(data, EMPTY_TREE)
        except TreeError:
            continue
        if not isinstance(decoded, Index):
            assert encode_tree(decoded)[-1][1] == data


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        ("count", "is not what the index says"),
        ("size", "is not what the index says"),
        ("order", "is not what the index says"),
        ("nested", "is none"),
        ("not a tree", "does not begin as one"),
        ("cut too early", "does not end where one should"),
        ("not cut", "does not end where one should"),
        ("too few", "has too few entries for that"),
    ],
)
def test_an_index_that_lies_about_its_leaves_is_refused(lie, says):
    store = Memory()
    listing = [Entry(b"%02d" % number, 0, 1, 1, EMPTY_TREE) for number in range(30)]
    with small_leaves():
        parts = tree_format.cut(listing)
        if lie == "cut too early":
            at = next(number for number, part in enumerate(parts) if len(part) > 1)
            parts[at : at + 1] = [parts[at][:1], parts[at][1:]]
        elif lie == "not cut":
            parts[:2] = [[*parts[0], *parts[1]]]
        elif lie == "too few":
            parts = [listing[:2], listing[2:4]]
        encoded = [tree_format.encode_leaf(part) for part in parts]
        first, second, *rest = (leaf for leaf, _ in encoded)
        for _, data in encoded:
            store.add_bytes(data)
        if lie == "count":
            first = first._replace(entries=first.entries + 1)
        elif lie == "size":
            first = first._replace(size=first.size + 1)
        elif lie == "order":
            first, second = first._replace(digest=second.digest), second._replace(digest=first.digest)
        elif lie == "nested":
            first = first._replace(digest=write_tree(store, listing).digest)
        elif lie == "not a tree":
            first = first._replace(digest=store.add_bytes(b"a text and no tree"))
        digest = store.add_bytes(tree_format.encode_index([first, second, *rest]))

        with pytest.raises(TreeError, match=says):
            read_tree(store, digest)


def test_a_folder_that_should_be_cut_and_is_not_is_refused():
    store = Memory()
    digest = store.add_bytes(tree_format.encode_entries(large(8193)))

    with pytest.raises(TreeError, match="too many entries for one that is not cut"):
        read_tree(store, digest)


def test_leaves_that_overlap_are_refused():
    store = Memory()
    parts = []
    for pair in ((b"a", b"c"), (b"b", b"d")):
        leaf, data = tree_format.encode_leaf([Entry(name, 0, 1, 1, EMPTY_TREE) for name in pair])
        store.add_bytes(data)
        parts.append(leaf)
    digest = store.add_bytes(tree_format.encode_index(parts))

    with small_leaves(split_above=0, leaf_size=2**64):
        for read in (
            lambda: read_tree(store, digest),
            lambda: find(store, digest, [b"a"]),
            lambda: edit(store, store, digest, {b"a": None}),
        ):
            with pytest.raises(TreeError, match="reaches into the next"):
                read()


def test_names_and_targets_may_be_as_long_as_a_file_system_allows():
    listing = (Entry(b"l", Kind.SYMLINK, 4095, 1, EMPTY_TREE), Entry(b"n" * 255, FILE, 1, 1, EMPTY_TREE))
    ((digest, data),) = encode_tree(listing)

    assert decode_tree(data, digest) == listing


@pytest.mark.parametrize("size", [0, 4096])
def test_links_that_no_file_system_can_hold_are_not_stored(size):
    with pytest.raises(UsageError, match="a symbolic link leads nowhere, or further than a path can"):
        encode_tree([Entry(b"a", FILE, 0, 1, EMPTY_TREE), Entry(b"l", Kind.SYMLINK, size, 1, EMPTY_TREE)])


def test_no_tree_is_longer_than_the_limit():
    """The limit is what a store reads at most: a tree that could be written but not read would be lost."""
    with mock.patch.object(tree_format, "MOST_ENTRIES", 10):
        longest = [Entry(b"%0255d" % number, FILE, 1, 1, EMPTY_TREE) for number in range(10)]
        ((leaf, data),) = tree_format.encode_leaves(longest)
        index = tree_format.encode_index([leaf._replace(first=entry.name) for entry in longest])

        assert decode_tree(data, leaf.digest) == tuple(longest)
        with pytest.raises(UsageError, match="more files than a tree can list"):
            tree_format.encode_leaves([*longest, Entry(b"z", FILE, 1, 1, EMPTY_TREE)])
        with pytest.raises(UsageError, match="more files than a tree can list"):
            tree_format.encode_index([leaf] * 11)
    assert max(len(data), len(index)) - 10 <= (tree_format.TREE_LIMIT - 10) * 10 // tree_format.MOST_ENTRIES


LYING = [{"files": 1_000_000}, {"files": 0}, {"size": 6}]


@pytest.mark.parametrize("lie", LYING, ids=repr)
@pytest.mark.parametrize(
    "read",
    [
        lambda store, root: list(walk(store, root)),
        lambda store, root: list(tree_objects(store, root)),
        lambda store, root: diff(store, None, root),
        lambda store, root: diff(store, root, None),
        lambda store, root: find(store, root, [b"inner", b"x"]),
        lambda store, root: graft(store, store, root, [b"inner", b"y"], Entry(b"", FILE, 1, 1, EMPTY_TREE)),
    ],
    ids=["walk", "tree_objects", "diff to", "diff from", "find", "graft"],
)
def test_a_folder_that_lies_about_what_is_beneath_is_refused(lie, read):
    store = Memory()
    inner = build(store, {b"x": Leaf(FILE, b"content")}, b"inner")
    root = write_tree(store, [inner._replace(**lie)])

    with pytest.raises(TreeError, match="sums up to files: 1, size: 7; what names it says") as caught:
        read(store, root.digest)
    assert inner.digest in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("lie", LYING, ids=repr)
def test_a_folder_that_two_entries_tell_apart_is_refused(lie):
    """What is known already is not read again, and not believed either."""
    store = Memory()
    inner = build(store, {b"x": Leaf(FILE, b"content")}, b"a")
    liar = write_tree(store, [inner, inner._replace(name=b"b", **lie)])
    honest = write_tree(store, [inner, inner._replace(name=b"b")])

    with pytest.raises(TreeError, match="what names it says"):
        list(tree_objects(store, liar.digest))
    with pytest.raises(TreeError, match="what names it says"):
        diff(store, honest.digest, liar.digest)


def test_an_empty_folder_that_is_said_to_hold_files_is_refused():
    store = Memory()
    folder = write_tree(store, [], b"empty")
    root = write_tree(store, [folder._replace(size=999, files=7)])

    with pytest.raises(TreeError, match="sums up to files: 0, size: 0; what names it says files: 7, size: 999"):
        diff(store, None, root.digest)


def test_what_names_a_folder_can_be_checked():
    store = Memory()
    folder = build(store, {b"x": Leaf(FILE, b"content")})

    check_folder(store, folder)
    with pytest.raises(TreeError, match="what names it says files: 2, size: 7"):
        check_folder(store, folder._replace(files=2))


def bomb(store, levels):
    """Return a folder of ten folders of ten folders ..., in as many objects as there are levels."""
    folder = write_tree(store, [])
    for _ in range(levels):
        folder = write_tree(store, [folder._replace(name=b"%d" % number) for number in range(10)])
    return folder


@pytest.mark.parametrize(
    "read",
    [
        lambda store, root: sum(1 for _ in walk(store, root)),
        lambda store, root: diff(store, None, root),
        lambda store, root: diff(store, root, EMPTY_TREE),
    ],
    ids=["walk", "diff to", "diff from"],
)
def test_a_few_objects_do_not_stand_for_endless_folders(read):
    store = Memory()
    root = bomb(store, 30).digest

    with (
        mock.patch.object(tree_reading, "MOST_WITHOUT_FILES", 1000),
        pytest.raises(TreeError, match="more than 1,000 folders without files"),
    ):
        read(store, root)
    assert len(store.reads) < 1200


def test_as_many_folders_without_files_as_are_allowed():
    store = Memory()
    root = bomb(store, 3).digest

    with mock.patch.object(tree_reading, "MOST_WITHOUT_FILES", 1110):
        assert sum(1 for _ in walk(store, root)) == 1110
        assert len(diff(store, None, root).added) == 1000
        assert len(diff(store, root, None).deleted) == 1000


def test_the_objects_of_a_bomb_are_few():
    store = Memory()

    assert len(list(tree_objects(store, bomb(store, 30).digest))) == 31


@pytest.mark.parametrize(
    ("target", "size"),
    [(b"", 0), (b"", 1), (b"a\0b", 3), (b"x" * 4096, 4096), (b"x" * 4096, 5), (b"ab", 1), (b"a", 2)],
)
def test_targets_that_no_link_can_have_are_refused(target, size):
    store = Memory()
    link = Entry(b"l", Kind.SYMLINK, size, 1, store.add_bytes(target))

    with pytest.raises(TreeError, match="cannot be the target of a symbolic link") as caught:
        read_link(store, link)
    assert caught.value.hint
    with pytest.raises(TreeError):
        check_links(store, [None, link])


@pytest.mark.parametrize("target", [b"a", b"../\xff\n", b"x" * 4095])
def test_other_targets_are_read(target):
    store = Memory()
    link = Entry(b"l", Kind.SYMLINK, len(target), 1, store.add_bytes(target))

    assert read_link(store, link) == target
    check_links(store, [link, link._replace(digest=EMPTY_TREE), Entry(b"f", FILE, 1, 1, EMPTY_TREE)])
