"""Two versions of a record come to one: folders file by file, locks as they are, and nothing goes that one side has."""

from __future__ import annotations

from typing import Any

import pytest

from mlops_cli.errors import MissingObject
from mlops_cli.hashing import hash_bytes
from mlops_cli.records.locks import Acceptance, Input, Lock, OutputRecord
from mlops_cli.records.pointers import ObjectKind, Pointer, read_pointer
from mlops_cli.records.sources import UrlSource
from mlops_cli.store.trees import Kind
from mlops_cli.workspace.gitignore import merge_ignored
from mlops_cli.workspace.lock_merge import choose_lock
from mlops_cli.workspace.merge_driver import mark
from mlops_cli.workspace.pointer_merge import Draft, merge_pointers
from mlops_cli.workspace.sides import Clash, Outcome, Side, Sides
from tests.store.folders import Leaf, Memory, build

A, B, C = (hash_bytes(content) for content in (b"a", b"b", b"c"))


def folder(store: Memory, files: dict[bytes, Any] | None, **more: Any) -> Pointer | None:
    """Return a pointer to `raw`, with the files of a dictionary as in `tests.store.folders`; None without one."""
    if files is None:
        return None
    tree = build(store, files)
    return Pointer("raw", ObjectKind.TREE, tree.digest, tree.size, tree.files, **more)


def leaf(content: bytes) -> Leaf:
    return Leaf(Kind.FILE, content)


def blob(digest: str = A, **more: Any) -> Pointer:
    return Pointer("raw", ObjectKind.BLOB, digest, 1, **more)


def merged(*sides: Pointer | None, store: Memory | None = None, choice: Side | None = None) -> Outcome:
    return merge_pointers("data/raw", Sides(*sides), Draft(store or Memory()), choice)


def read(outcome: Outcome) -> Pointer:
    assert outcome.clashes == ()
    assert outcome.data is not None
    return read_pointer(outcome.data, "data/raw.mlx")


# --- pointers -------------------------------------------------------------------------------------------------------


def test_folders_are_merged_file_by_file() -> None:
    store = Memory()
    base = {b"1": leaf(b"one"), b"2": leaf(b"two"), b"in": {b"3": leaf(b"three")}}
    ours = base | {b"1": leaf(b"ONE"), b"4": leaf(b"four")}
    theirs = {b"1": leaf(b"one"), b"in": {b"3": leaf(b"three"), b"5": leaf(b"five")}}
    both = {b"1": leaf(b"ONE"), b"4": leaf(b"four"), b"in": {b"3": leaf(b"three"), b"5": leaf(b"five")}}
    trees = Draft(store)
    sides = Sides(*(folder(store, files) for files in (base, ours, theirs)))
    before = dict(store.objects)

    outcome = merge_pointers("data/raw", sides, trees)

    assert outcome.side is None
    assert store.objects == before, "nothing is stored before it is asked for"
    assert read(outcome) == folder(store, both)
    assert set(store.objects) - set(before) <= set(trees.new)


DIFFERENT = [
    ({b"1": b"0"}, {b"1": b"a"}, {b"1": b"b"}, "changed on both sides"),
    ({}, {b"1": b"a"}, {b"1": b"b"}, "added on both sides, with different bytes"),
    (None, {b"1": b"a"}, {b"1": b"b"}, "added on both sides, with different bytes"),
    ({b"1": b"0"}, {}, {b"1": b"b"}, "deleted in ours, changed in theirs"),
    ({b"1": b"0"}, {b"1": b"a"}, {}, "deleted in theirs, changed in ours"),
]


@pytest.mark.parametrize(("base", "ours", "theirs", "what"), DIFFERENT)
def test_what_both_changed_is_named_and_a_choice_keeps_all_else(base: Any, ours: Any, theirs: Any, what: str) -> None:
    store = Memory()

    def pointer(files: dict[bytes, bytes] | None, *also: bytes) -> Pointer | None:
        if files is None:
            return None
        return folder(store, {name: leaf(content) for name, content in (*files.items(), *((n, n) for n in also))})

    sides = (pointer(base), pointer(ours, b"mine"), pointer(theirs, b"yours"))

    assert merged(*sides, store=store).clashes == (Clash("data/raw/1", what),)
    for side, files in ((Side.OURS, ours), (Side.THEIRS, theirs)):
        assert read(merged(*sides, store=store, choice=side)) == pointer(files, b"mine", b"yours")


def test_a_listing_that_is_not_here_is_told_with_what_brings_it() -> None:
    store, remote = Memory(), Memory()
    sides = [folder(remote, {name: leaf(name)}) for name in (b"1", b"2", b"3")]

    with pytest.raises(MissingObject, match="`data/raw` changed on both sides, and a listing") as caught:
        merged(*sides, store=store)
    assert caught.value.hint == "`mlx resolve --fetch data/raw` brings listings from a remote, no data, and merges them"
    trees = Draft(store, remote)
    assert read(merge_pointers("data/raw", Sides(*sides), trees)).files == 2
    assert {side.digest for side in sides if side} <= set(trees.new), "what was read is stored, too"
    with pytest.raises(MissingObject, match="the remote lacks a listing"):
        merge_pointers("data/raw", Sides(*sides), Draft(store, store))


FOLDER = Pointer("raw", ObjectKind.TREE, C, 1, 1)
URL = UrlSource("s3://bucket/raw", "1", A)
NEWER = URL._replace(etag="2")


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "result"),
    [
        (blob(A), blob(A, executable=True), blob(B), blob(B, executable=True)),
        (blob(A), blob(B), blob(A), blob(B)),
        (blob(A), blob(B), blob(C), "changed on both sides"),
        (None, blob(B), blob(C), "added on both sides, with different bytes"),
        (blob(A), blob(B), FOLDER, "a file on one side, a folder on the other"),
        (blob(A), FOLDER, blob(A, executable=True), FOLDER),  # which has no mark
        (blob(A, source=URL), blob(B, source=URL), blob(A, source=NEWER), blob(B, source=NEWER)),
        (
            blob(A, source=URL),
            blob(A, source=NEWER),
            blob(A, source=URL._replace(etag="3")),
            blob(A, source=NEWER),
        ),
        (
            blob(A, source=URL),
            blob(B, source=NEWER._replace(fetched=B)),
            blob(C, source=URL._replace(etag="3", fetched=C)),
            "imported in different versions",
        ),
        (blob(A)._replace(path="old"), blob(A), blob(B)._replace(path="old"), blob(B)),
    ],
)
def test_files_and_sources_are_merged_as_wholes(base: Any, ours: Any, theirs: Any, result: Any) -> None:
    outcome = merged(base, ours, theirs)

    if isinstance(result, Pointer):
        assert read(outcome) == result
    else:
        assert outcome.clashes == (Clash("data/raw", result),)
        assert read(merged(base, ours, theirs, choice=Side.OURS)) == ours
        assert read(merged(base, ours, theirs, choice=Side.THEIRS)) == theirs


# --- locks ----------------------------------------------------------------------------------------------------------


def lock(cmd: str = "run", *, dep: str = A, lr: Any = 1, out: str = A, **more: Any) -> Lock:
    return Lock(
        cmd=(cmd,),
        deps=(Input("raw", ObjectKind.BLOB, dep, 1),),
        params={"params.yaml": {"lr": lr}},
        outs=(OutputRecord("model", ObjectKind.BLOB, out, 1),),
        **more,
    )


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "stands", "fits"),
    [
        (lock(), lock(lr=2, out=B), lock(lr=2, out=C), Side.OURS, True),  # the same run, with another result
        (lock(), lock(lr=2, out=B), lock(out=C), Side.OURS, True),  # theirs only ran again
        (lock(), lock(out=B), lock(lr=2, out=C), Side.THEIRS, True),
        (lock(), lock(lr=2, out=B), lock(lr=2, dep=B, out=C), Side.THEIRS, True),
        (lock(), lock(lr=2, out=B), lock(dep=B, out=C), Side.OURS, False),  # nobody ran with both
        (lock(), lock(lr=2), lock(dep=B), Side.OURS, False),  # equal outputs, which Git's lines would merge
        (lock(), lock(lr=2, out=B), lock(lr=3, out=C), Side.OURS, False),
        (None, lock(lr=2, out=B), lock(lr=2, out=C), Side.OURS, True),
        (None, lock(lr=2, out=B), lock(lr=3, out=C), Side.OURS, False),
        (lock(), lock(lr=[["a"], []], out=B), lock(lr=1, out=C, cmd="other"), Side.OURS, False),
        (lock(), lock(lr=2, out=B, changed_during_run=("raw",)), lock(lr=2, out=C), Side.THEIRS, True),
        (lock(), lock(lr=2, out=A, accepted=(Acceptance("a comment"),)), lock(lr=2, out=C), Side.THEIRS, True),
    ],
)
def test_the_lock_stands_whose_inputs_both_sides_come_to(
    base: Lock | None, ours: Lock, theirs: Lock, stands: Side, fits: bool
) -> None:
    assert choose_lock(Sides(base, ours, theirs)) == (stands, fits)


# --- lines ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "result"),
    [
        (b"", b"/a\n", b"/b\n", b"/a\n/b\n"),
        (b"*.tmp\n/a\n", b"*.tmp\n/a\n/c\n", b"*.tmp\n/b\n", b"*.tmp\n/b\n/c\n"),
        (b"/a\n", b"/a\n\n# more\n", b"/b\n", None),
        (b"", b"/a\n", b"!/b\n", None),
        (b"", b"/a", b"/a\r\n/b", b"/a\n/a\r\n/b\n"),
    ],
)
def test_lines_that_hide_data_are_merged_as_a_set(
    base: bytes, ours: bytes, theirs: bytes, result: bytes | None
) -> None:
    assert merge_ignored(base, ours, theirs) == result


def test_markers_stand_around_what_differs() -> None:
    assert mark(b"a\nb\nd\n", b"a\nc\nd\n", 7) == b"a\n<<<<<<< ours\nb\n=======\nc\n>>>>>>> theirs\nd\n"
    assert mark(b"a", b"", 9) == b"<<<<<<<<< ours\na\n=========\n>>>>>>>>> theirs\n"
