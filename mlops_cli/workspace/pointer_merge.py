"""Two versions of a pointer made into one: folders file by file, everything else as a whole.

A merged folder's listing is new, the files that it names are not: only listings are read here, and none is stored
before the merge is known to go through (`Draft`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from mlops_cli.errors import CorruptObject, MissingObject
from mlops_cli.hashing import Digest, hash_bytes
from mlops_cli.records.pointers import SUFFIX, ObjectKind, Pointer
from mlops_cli.records.sources import Source, UrlSource
from mlops_cli.store.tree_merge import Conflict, ConflictKind, merge
from mlops_cli.store.trees import Entry, TreeSource, graft
from mlops_cli.words import word
from mlops_cli.workspace.sides import Clash, Outcome, Side, Sides


class Draft:
    """Trees of a store, and new ones that are in memory until somebody stores them: merged, or from a `remote`."""

    def __init__(self, store: TreeSource, remote: TreeSource | None = None) -> None:
        self.new: dict[Digest, bytes] = {}
        self.remote = remote
        self._store = store

    def read(self, digest: Digest) -> bytes:
        """Return a tree; MissingObject, CorruptObject."""
        data = self.new.get(digest)
        if data is not None:
            return data
        try:
            return self._store.read(digest)
        except MissingObject:
            if self.remote is None:
                raise
        self.new[digest] = data = self.remote.read(digest)
        return data

    def add_bytes(self, data: bytes) -> Digest:
        """Keep a tree."""
        digest = hash_bytes(data)
        self.new[digest] = data
        return digest


def merge_pointers(path: str, sides: Sides[Pointer], trees: Draft, choice: Side | None = None) -> Outcome:
    """Return the pointer of the project path `path` that both sides come to; neither side may be None.

    `choice` decides what both changed differently; of a folder that is some files, and all else of both sides stays.
    MissingObject when a listing that is needed is not among `trees`.
    """
    ours, theirs = sides.ours, sides.theirs
    assert ours is not None
    assert theirs is not None
    origin = _source_side(sides)
    if origin is None:
        # Two versions of an import: files of both together are no version that ever was.
        return _whole(path, sides, choice, "imported in different versions")
    if ours.kind is theirs.kind is ObjectKind.TREE:
        digests = Sides(sides.base.digest if sides.base else None, ours.digest, theirs.digest)
        side = digests.settled()
        if side is None:
            return _merge_folders(path, sides, origin, trees, choice)
        return _with(path, sides, sides.of(side), origin)
    return _merge_wholes(path, sides, origin, choice)


def _source_side(sides: Sides[Pointer]) -> Side | None:
    """Return whose source it is to be; None when the sides have different bytes from somewhere else."""
    sources: Sides[Source] = Sides(*(side.source if side else None for side in sides))
    return sources.settled() or Sides(*map(_as_fetched, sources)).settled()


def _as_fetched(source: Source | None) -> Source | None:
    """Return a source without what its place called the version: the bytes that came tell more."""
    if source is None:
        return None
    return source._replace(etag=None) if isinstance(source, UrlSource) else source._replace(commit="")


def _merge_folders(path: str, sides: Sides[Pointer], origin: Side, trees: Draft, choice: Side | None) -> Outcome:
    base, ours, theirs = sides
    assert ours is not None
    assert theirs is not None
    was = base.digest if base and base.kind is ObjectKind.TREE else None
    try:
        folder, conflicts = merge(trees, trees, was, ours.digest, theirs.digest)
        if conflicts and choice is not None:
            folder = _decided(trees, folder, conflicts, choice)
    except MissingObject as error:
        raise _unlisted(path, trees) from error
    except CorruptObject as error:
        raise CorruptObject(f"`{path}` cannot be merged: {error.message}", hint=error.marked_hint) from error
    if conflicts and choice is None:
        return Outcome(None, clashes=tuple(Clash(f"{path}/{os.fsdecode(c.path)}", _worded(c)) for c in conflicts))
    merged = ours._replace(digest=folder.digest, size=folder.size, files=folder.files)
    return _with(path, sides, merged, origin)


def _unlisted(path: str, trees: Draft) -> MissingObject:
    if trees.remote is not None:
        hint = (
            f"`mlx push` where it was added, or `git checkout --ours {word(path + SUFFIX)}` takes one side as a whole"
        )
        return MissingObject(f"`{path}` changed on both sides, and the remote lacks a listing of its files", hint=hint)
    return MissingObject(
        f"`{path}` changed on both sides, and a listing of its files is not here",
        hint=f"`mlx resolve --fetch {word(path)}` brings listings from a remote, no data, and merges them",
    )


def _decided(trees: Draft, folder: Entry, conflicts: Sequence[Conflict], choice: Side) -> Entry:
    """Return a merged folder with each path in conflict as it is on the side of choice."""
    for conflict in conflicts:
        wanted = conflict.ours if choice is Side.OURS else conflict.theirs
        if wanted != conflict.kept:
            folder = graft(trees, trees, folder.digest, conflict.path.split(b"/"), wanted)
    return folder


def _worded(conflict: Conflict) -> str:
    if conflict.kind is ConflictKind.DELETED:
        return _deleted(gone_in=Side.OURS if conflict.ours is None else Side.THEIRS)
    return {
        ConflictKind.MODIFIED: "changed on both sides",
        ConflictKind.ADDED: "added on both sides, with different bytes",
        ConflictKind.REPLACED: "a file on one side, a folder on the other",
    }[conflict.kind]


def _deleted(gone_in: Side) -> str:
    return f"deleted in {gone_in}, changed in {Side.THEIRS if gone_in is Side.OURS else Side.OURS}"


def clash_of_deletion(path: str, sides: Sides[bytes]) -> Clash:
    """Return how a record that one side deleted clashes with what the other made of it."""
    gone = Side.OURS if sides.ours is None else Side.THEIRS
    if sides.base is None:
        return Clash(path, f"renamed on one side: it is only in {Side.THEIRS if gone is Side.OURS else Side.OURS}")
    return Clash(path, _deleted(gone))


def _merge_wholes(path: str, sides: Sides[Pointer], origin: Side, choice: Side | None) -> Outcome:
    """Merge what is a file on one side at least: its bytes as a whole, and apart from them whether it is executable."""
    bytes_side = Sides(*((side.kind, side.digest) if side else None for side in sides)).settled()
    if bytes_side is None:
        assert sides.ours is not None
        assert sides.theirs is not None
        one_kind = sides.ours.kind is sides.theirs.kind
        return _whole(path, sides, choice, _both(sides) if one_kind else "a file on one side, a folder on the other")
    merged = sides.of(bytes_side)
    assert merged is not None
    mark = sides.of(Sides(*(side.executable if side else None for side in sides)).settled() or bytes_side)
    assert mark is not None
    executable = mark.executable and merged.kind is ObjectKind.BLOB
    return _with(path, sides, merged._replace(executable=executable), origin)


def _both(sides: Sides[Pointer]) -> str:
    return "changed on both sides" if sides.base else "added on both sides, with different bytes"


def _whole(path: str, sides: Sides[Pointer], choice: Side | None, why: str) -> Outcome:
    if choice is None:
        return Outcome(None, clashes=(Clash(path, why),))
    return _with(path, sides, sides.of(choice), choice)


def _with(path: str, sides: Sides[Pointer], merged: Pointer | None, origin: Side) -> Outcome:
    """Return a merged pointer, beside whose data it lies whatever it was called before, with the source of a side."""
    assert merged is not None
    named = sides.of(origin)
    assert named is not None
    merged = merged._replace(path=path.rpartition("/")[2], source=named.source)
    side = next((side for side in Side if sides.of(side) == merged), None)
    return Outcome(merged.to_bytes(), side)
