"""A recorded folder of which only parts are here, made one with what is here.

What is here counts; where nothing is, what is kept here was deleted, and what is away is as recorded. Of what is away
no tree is read but those on the way to what is here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from mlops_cli.errors import MissingObject, UsageError
from mlops_cli.hashing import Digest
from mlops_cli.store.tree_edit import TreeTarget, edit
from mlops_cli.store.tree_extent import Extent, Ruled
from mlops_cli.store.tree_format import Entry, Kind
from mlops_cli.store.tree_reading import EMPTY_TREE, Limits, Named, TreeSource, find_names, read_folder


class Overlaid(NamedTuple):
    """What a folder comes to, and the paths in it that are here where all was away (empty: the folder itself)."""

    entry: Entry | None
    came: tuple[bytes, ...]


class Obstructed(UsageError):
    """A file is at `path` where a folder is recorded that is away, or the reverse."""

    def __init__(self, path: bytes) -> None:
        super().__init__("a file is where a folder is recorded that is away, or the reverse")
        self.path = path


class Unlisted(MissingObject):
    """The tree of the folder at `path` is not in the store, or not all of it."""

    def __init__(self, path: bytes, error: MissingObject) -> None:
        super().__init__(error.message, hint=error.marked_hint)
        self.path = path


def overlay(
    store: TreeSource, batch: TreeTarget, recorded: Entry | None, present: Entry | None, extent: Extent
) -> Overlaid:
    """Return what `present` is together with what is away of `recorded`; without a change in it, that is `recorded`.

    New trees go to `batch`. Obstructed when one can only be had without the other; Unlisted for a tree on the way.
    """
    overlaying = _Overlaying(store, batch, extent, recorded.digest if recorded else EMPTY_TREE)
    top = _Place(b"", b"", None, recorded, present)
    places = [top]
    for place in places:  # parents first: the list grows while it is walked
        places.extend(overlaying.meet(place))
    for place in reversed(places):  # children are complete before their parents
        overlaying.settle(place)
    return Overlaid(top.result, tuple(sorted(overlaying.came)))


@dataclass(slots=True)
class _Place:
    """A path with what is recorded and what is present there; `opened` is the tree that `changes` are made to."""

    path: bytes
    name: bytes
    parent: _Place | None
    recorded: Entry | None
    present: Entry | None
    result: Entry | None = None
    opened: Digest | None = None
    changes: dict[bytes, Entry | None] | None = None
    before: dict[bytes, Entry] = field(default_factory=dict)


class _Overlaying:
    def __init__(self, store: TreeSource, batch: TreeTarget, extent: Extent, root: Digest) -> None:
        self.came: list[bytes] = []
        self._store = store
        self._batch = batch
        self._extent = extent
        self._ruled = Ruled(extent)
        self._limits = Limits(root)

    def meet(self, place: _Place) -> list[_Place]:
        """Decide what is at a place, or return the places in the folder there on which that depends."""
        recorded, present = place.recorded, place.present
        is_here, ruled = self._extent.has(place.path), self._ruled.names(place.path)
        if is_here and not (ruled and _is_filled(recorded)):
            place.result = present
            return []
        if not is_here and present is None and not (ruled and _is_filled(recorded)):
            place.result = recorded
            return []
        if not is_here and (recorded is None or _same(recorded, present)):
            self._come(place)
            return []
        if not _is_folder(recorded) and not _is_folder(present):
            place.result = present
            if not is_here and present is not None:
                self._come(place)
            return []
        if (recorded and not _is_folder(recorded)) or (present and not _is_folder(present)):
            raise Obstructed(place.path)
        try:
            return self._open(place, ruled, is_here=is_here)
        except MissingObject as error:
            raise Unlisted(place.path, error) from error

    def _come(self, place: _Place) -> None:
        place.result = place.present
        if place.present is not None:
            self.came.append(place.path)

    def _open(self, place: _Place, ruled: set[bytes], *, is_here: bool) -> list[_Place]:
        """Return the places in a folder that are not as in its tree: the present one, or the recorded one."""
        old = _named(place.recorded)
        new = _named(place.present)
        names = set(ruled)
        there: dict[bytes, Entry] = {}
        if new is not None and is_here:
            there = find_names(self._store, new, names)
        elif new is not None:
            there = {entry.name: entry for entry in read_folder(self._store, *new)}
            names |= there.keys()
        known = find_names(self._store, old, names) if old is not None else {}
        base = new if is_here else old
        place.opened, place.before = base.digest if base else None, there if is_here else known
        place.changes = {}
        below = []
        for name in sorted(names):
            path = place.path + b"/" + name if place.path else name
            self._limits.meet(path, known.get(name))
            below.append(_Place(path, name, place, known.get(name), there.get(name)))
        return below

    def settle(self, place: _Place) -> None:
        """Tell the folder above what has become of a place."""
        if place.changes is not None:
            try:
                place.result = self._made(place)
            except MissingObject as error:
                raise Unlisted(place.path, error) from error
        if place.parent is not None and place.parent.changes is not None:
            result = None if place.result is None else place.result._replace(name=place.name)
            if result != place.parent.before.get(place.name):
                place.parent.changes[place.name] = result

    def _made(self, place: _Place) -> Entry | None:
        base = place.present if self._extent.has(place.path) else place.recorded
        made = edit(self._store, self._batch, place.opened, place.changes) if place.changes else base
        if made is None or made.digest == EMPTY_TREE:  # nothing is left in it: it is what it is here
            return place.present
        return made._replace(name=place.name)


def _named(entry: Entry | None) -> Named | None:
    return None if entry is None else Named(entry.digest, (entry.size, entry.files))


def _is_folder(entry: Entry | None) -> bool:
    return entry is not None and entry.kind == Kind.FOLDER


def _is_filled(entry: Entry | None) -> bool:
    return entry is not None and entry.kind == Kind.FOLDER and entry.digest != EMPTY_TREE


def _same(one: Entry, other: Entry | None) -> bool:
    return other is not None and (one.kind, one.digest) == (other.kind, other.digest)
