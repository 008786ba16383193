"""Two trees that came from one, made into one again.

A name that one side left as it was is the other side's; what both made of it alike is that. Only folders that both
sides changed are opened, and of a large one only leaves that hold what the side with fewer changes did. What is left is
a conflict, which is a value: the merged tree is whole without it being solved.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from operator import itemgetter
from typing import NamedTuple

from mlops_cli.hashing import Digest
from mlops_cli.store.tree_edit import TreeTarget, edit, summary
from mlops_cli.store.tree_format import Entry, Index, Kind, Leaf
from mlops_cli.store.tree_reading import EMPTY_TREE, Limits, Named, TreeSource, leaf_entries, open_tree

_NONE: frozenset[Digest] = frozenset()


class ConflictKind(StrEnum):
    """What two sides made of one path."""

    MODIFIED = "modified"  # both changed a file, differently
    ADDED = "added"  # both made a file, differently
    DELETED = "deleted"  # one deleted a file that the other changed
    REPLACED = "replaced"  # one has a file where the other has a folder


class Conflict(NamedTuple):
    """One path that two sides changed in ways that do not go together: what each has there, and had.

    The merged tree has there what `ours` is, or `theirs` where ours is nothing.
    """

    path: bytes
    base: Entry | None
    ours: Entry | None
    theirs: Entry | None

    @property
    def kind(self) -> ConflictKind:
        """What the two sides made of the path."""
        if self.ours is None or self.theirs is None:
            return ConflictKind.DELETED
        if Kind.FOLDER in (self.ours.kind, self.theirs.kind):
            return ConflictKind.REPLACED
        was_file = self.base is not None and self.base.kind != Kind.FOLDER
        return ConflictKind.MODIFIED if was_file else ConflictKind.ADDED

    @property
    def kept(self) -> Entry | None:
        """What the merged tree has at the path."""
        return self.theirs if self.ours is None else self.ours


class Merged(NamedTuple):
    """A merged folder's entry, without a name, and what its two sides disagree on, sorted by path."""

    folder: Entry
    conflicts: tuple[Conflict, ...]


def merge(store: TreeSource, batch: TreeTarget, base: Digest | None, ours: Digest, theirs: Digest) -> Merged:
    """Return what `ours` and `theirs` come to, which both were `base` once; without one, nothing was there.

    Files, links and folders are merged by name; that a file is executable, apart from its bytes. A folder that one side
    deleted keeps what the other changed in it, as conflicts, or added to it. Trees that did not exist go to `batch`,
    those beneath a folder before its own; the bytes of files are not asked for. TreeError as for `diff`.
    """
    if ours == theirs or base == theirs:
        return Merged(summary(store, batch, ours), ())
    if base == ours:
        return Merged(summary(store, batch, theirs), ())
    root = _Meeting(b"", None, *(Named(side) if side else None for side in (base, ours, theirs)))
    merging = _Merging(store, root)
    meetings = [root]
    for meeting in meetings:  # parents first: the list grows while it is walked
        meetings.extend(merging.compare(meeting))
    for meeting in reversed(meetings[1:]):  # children are complete before their parents
        assert meeting.parent is not None
        meeting.parent.changes[meeting.name] = _settle(store, batch, meeting)
    conflicts = tuple(sorted(merging.conflicts, key=itemgetter(0)))
    onto = root.onto.digest if root.onto else None
    return Merged(edit(store, batch, onto, root.changes) if root.changes else summary(store, batch, onto), conflicts)


@dataclass(slots=True)
class _Meeting:
    """A folder that both sides changed: what the one did, `changes`, is done to the other's, `onto`."""

    path: bytes
    parent: _Meeting | None
    base: Named | None
    ours: Named | None
    theirs: Named | None
    onto: Named | None = field(init=False, default=None)
    changes: dict[bytes, Entry | None] = field(init=False, default_factory=dict)

    @property
    def name(self) -> bytes:
        return self.path.rpartition(b"/")[2]


def _settle(store: TreeSource, batch: TreeTarget, meeting: _Meeting) -> Entry | None:
    """Return what a folder that both sides changed has become; None when nothing of it is left."""
    onto = meeting.onto
    if not meeting.changes and onto is not None and onto.declared is not None:
        folder = Entry(b"", Kind.FOLDER, *onto.declared, onto.digest)
    elif onto is None and not any(meeting.changes.values()):
        folder = Entry(b"", Kind.FOLDER, 0, 0, EMPTY_TREE)
    else:
        folder = edit(store, batch, onto.digest if onto else None, meeting.changes)
    if folder.digest == EMPTY_TREE:
        if meeting.ours is None or meeting.theirs is None:
            return None
        folder = summary(store, batch, None)
    return folder._replace(name=meeting.name)


class _Merging:
    """What one merge has met so far."""

    def __init__(self, store: TreeSource, root: _Meeting) -> None:
        self.conflicts: list[Conflict] = []
        self._store = store
        sides = (root.base, root.ours, root.theirs)
        self._limits = tuple(Limits(side.digest if side else EMPTY_TREE) for side in sides)

    def compare(self, meeting: _Meeting) -> Iterator[_Meeting]:
        """Fill in what happens to the names of a folder; yield its folders that both sides changed."""
        read: dict[Leaf, tuple[Entry, ...]] = {}
        base, ours, theirs = (_Folder(self._store, s, read) for s in (meeting.base, meeting.ours, meeting.theirs))
        mine = ours.weight(base, theirs) + base.weight(ours)
        theirs_lead = theirs.weight(base, ours) + base.weight(theirs) <= mine
        leading, onto = (theirs, ours) if theirs_lead else (ours, theirs)
        meeting.onto = onto.named
        was, now = base.apart(leading), leading.apart(base, onto)
        prefix = meeting.path + b"/" if meeting.path else b""
        for name in was.keys() | now.keys():
            before, after = was.get(name), now.get(name)
            if before == after or leading.shares(onto, name):
                continue
            beside = onto.get(name)
            if beside == after:
                continue
            sides = (beside, after) if theirs_lead else (after, beside)
            conflict = Conflict(prefix + name, before, *sides)
            for limits, entry in zip(self._limits, conflict[1:], strict=True):
                limits.meet(conflict.path, entry)
            if beside == before:
                meeting.changes[name] = after
                continue
            if _both_have_changed_a_folder(*conflict[1:]):
                yield _Meeting(conflict.path, meeting, *map(_as_folder, conflict[1:]))
            elif (joined := _join(*conflict[1:])) is not None:
                meeting.changes[name] = joined
            else:
                self.conflicts.append(conflict)
                meeting.changes[name] = conflict.kept


def _as_folder(entry: Entry | None) -> Named | None:
    if entry is None or entry.kind != Kind.FOLDER:
        return None
    return Named(entry.digest, (entry.size, entry.files))


def _both_have_changed_a_folder(base: Entry | None, ours: Entry | None, theirs: Entry | None) -> bool:
    """Say whether three different entries are to be merged name by name: no side has a file there now."""
    folders = [entry is not None and entry.kind == Kind.FOLDER for entry in (base, ours, theirs)]
    if all(folders[1:]):
        return True
    return folders[0] and any(folders[1:]) and None in (ours, theirs)


def _join(base: Entry | None, ours: Entry | None, theirs: Entry | None) -> Entry | None:
    """Return what three different entries, not all of them folders, come to without a conflict; None for none."""
    was_folder = base is not None and base.kind == Kind.FOLDER
    if ours is None or theirs is None:
        left = theirs if ours is None else ours
        # What the one deleted the other replaced, a file by a folder or a folder by a file.
        replaced = left is not None and base is not None and was_folder != (left.kind == Kind.FOLDER)
        return left if replaced else None
    if base is None or not {base.kind, ours.kind, theirs.kind} <= {Kind.FILE, Kind.EXECUTABLE}:
        return None
    if ours[2:] not in (base[2:], theirs[2:]) and theirs[2:] != base[2:]:
        return None
    content = theirs if ours[2:] == base[2:] else ours
    return content._replace(kind=theirs.kind if ours.kind == base.kind else ours.kind)


class _Folder:
    """A folder as one side has it; leaves are read when they are asked for, once for all three sides."""

    def __init__(self, store: TreeSource, named: Named | None, read: dict[Leaf, tuple[Entry, ...]]) -> None:
        self.named = named
        self._store = store
        self._read = read
        self._tree: tuple[Entry, ...] | Index = open_tree(store, *named) if named else ()

    @cached_property
    def leaves(self) -> frozenset[Digest]:
        return frozenset(leaf.digest for leaf in self._tree.leaves) if isinstance(self._tree, Index) else _NONE

    @cached_property
    def _entries(self) -> dict[bytes, Entry]:
        return {} if isinstance(self._tree, Index) else {entry.name: entry for entry in self._tree}

    def weight(self, *others: _Folder) -> int:
        """Return how many entries `apart` would give."""
        if isinstance(self._tree, Index):
            shared = _shared(others)
            return sum(leaf.entries for leaf in self._tree.leaves if leaf.digest not in shared)
        return len(self._tree)

    def apart(self, *others: _Folder) -> dict[bytes, Entry]:
        """Return the entries by name, without those of leaves that one of `others` has too."""
        if isinstance(self._tree, Index):
            shared = _shared(others)
            unequal = [leaf for leaf in self._tree.leaves if leaf.digest not in shared]
            return {entry.name: entry for leaf in unequal for entry in self._leaf(leaf)}
        return self._entries

    def get(self, name: bytes) -> Entry | None:
        """Return the entry of a name, or None."""
        leaf = self._place(name)
        if leaf is None:
            return self._entries.get(name)
        entries = self._leaf(leaf)
        at = bisect_right(entries, name, key=itemgetter(0)) - 1
        return entries[at] if at >= 0 and entries[at].name == name else None

    def shares(self, other: _Folder, name: bytes) -> bool:
        """Say whether one leaf of both folders would hold a name: then both have it, or neither has."""
        mine, yours = self._place(name), other._place(name)
        return mine is not None and yours is not None and mine.digest == yours.digest

    def _place(self, name: bytes) -> Leaf | None:
        """Return the leaf that holds a name if any does; None when the folder is in one piece."""
        if not isinstance(self._tree, Index):
            return None
        return self._tree.leaves[max(bisect_right(self._tree.leaves, name, key=itemgetter(0)) - 1, 0)]

    def _leaf(self, leaf: Leaf) -> tuple[Entry, ...]:
        if leaf not in self._read:
            assert self.named is not None
            assert isinstance(self._tree, Index)
            self._read[leaf] = next(leaf_entries(self._store, self.named.digest, self._tree, [leaf]))
        return self._read[leaf]


def _shared(others: tuple[_Folder, ...]) -> frozenset[Digest]:
    return _NONE.union(*(other.leaves for other in others))
