"""Which objects tracked paths need, as far as the cache can tell.

What lies below a tree is known only to who can read the tree. The trees that the cache lacks are therefore told apart:
whoever asks decides whether that is an error, something to fetch, or another store's promise.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from mlops_cli.errors import CorruptObject, MissingObject, UsageError
from mlops_cli.hashing import Digest
from mlops_cli.records.pointers import ObjectKind
from mlops_cli.store.cache import Cache
from mlops_cli.store.objects import AbsentObjects
from mlops_cli.store.trees import Entry, Index, Kind, TreeSource, decode_tree, find, split_path
from mlops_cli.words import word
from mlops_cli.workspace.snapshot import Tracked

Chosen = Iterable[tuple[Tracked, str]]
"""Tracked paths, each with the part below it that is meant (empty: all of it)."""


class Part(NamedTuple):
    """What is meant of a tracked path: it itself, or what lies at some place below it; `size` in bytes."""

    kind: ObjectKind
    digest: Digest
    size: int


class Holder(TreeSource, Protocol):
    """Trees, and whether an object is there: the cache, or a view of it."""

    def missing(self, digests: Collection[Digest]) -> set[Digest]: ...


@dataclass(frozen=True, slots=True)
class Reach:
    """The objects that some tracked paths need.

    `sizes` maps each known object to its bytes; `steps` orders them: the blobs, then the trees level by level, so that
    every step names only what is in those before it. `unread` are the trees that the cache lacks; `owners` maps both
    to a tracked path that needs them.
    """

    sizes: dict[Digest, int] = field(default_factory=dict)
    steps: list[list[Digest]] = field(default_factory=list)
    unread: set[Digest] = field(default_factory=set)
    owners: dict[Digest, str] = field(default_factory=dict)


def reach(cache: Holder, chosen: Chosen) -> Reach:
    """Return what `chosen` needs; UsageError for a part that its tracked path does not have."""
    chosen = list(chosen)
    if isinstance(cache, Cache):
        with suppress(AbsentObjects):  # the index of a cache behind a URL named them: it is known now that they are not
            bring_listings(
                cache, [tracked.digest for tracked, part in chosen if tracked.kind is ObjectKind.TREE and not part]
            )
    found = Reach()
    levels: list[dict[Digest, int]] = []
    frontier: list[Digest] = []
    for tracked, part in chosen:
        try:
            kind, digest, size = resolve_part(cache, tracked, part)
        except MissingObject:
            kind, digest, size = tracked.kind, tracked.digest, tracked.size
        found.owners.setdefault(digest, tracked.path)
        if kind is ObjectKind.TREE:
            frontier.append(digest)
        else:
            found.sizes[digest] = size
    while frontier:
        level: dict[Digest, int] = {}
        frontier = _descend(cache, frontier, level, found)
        levels.append(level)
    found.steps.append(list(found.sizes))
    for level in reversed(levels):  # a tree that stands on several levels comes with the deepest
        found.steps.append([digest for digest in level if digest not in found.sizes])
        found.sizes.update(level)
    return found


def bring_listings(cache: Cache, trees: Iterable[Digest]) -> None:
    """Have `trees` and all trees below them at hand, as far as they are stored: one request a level, not one a tree."""
    level = [] if cache.url is None else list(dict.fromkeys(trees))
    while level:
        cache.bring_trees(level)
        lacking = cache.window.missing(level)
        below = (children(cache.window.read(digest), digest)[0] for digest in level if digest not in lacking)
        level = list(dict.fromkeys(digest for inner in below for digest in inner))


def _descend(cache: Holder, trees: Iterable[Digest], level: dict[Digest, int], found: Reach) -> list[Digest]:
    """Read `trees`: their sizes go to `level`, their blobs to `found`; returns the trees that they name."""
    wanted = dict.fromkeys(trees)
    absent = cache.missing(wanted)
    found.unread.update(absent)
    below: list[Digest] = []
    for digest in (digest for digest in wanted if digest not in absent):
        data = cache.read(digest)
        level[digest] = len(data)
        inner, blobs = children(data, digest)
        below.extend(inner)
        found.sizes.update(blobs)
        for child in (*inner, *blobs):
            found.owners.setdefault(child, found.owners[digest])
    return below


def trees_above(cache: Holder, needed: Reach, digests: Collection[Digest]) -> set[Digest]:
    """Return those trees of `needed` below which one of `digests` is, at any depth."""
    found = set(digests)
    for level in needed.steps[1:]:
        for digest in level:
            trees, blobs = children(cache.read(digest), digest)
            if not found.isdisjoint(trees) or not found.isdisjoint(blobs):
                found.add(digest)
    return found.difference(digests)


class Unlisted(NamedTuple):
    """What trees that are not here have below them: how many `listings`, and the files and bytes that they name."""

    listings: int
    files: int
    size: int


NOTHING_UNLISTED = Unlisted(0, 0, 0)


def measure_unread(cache: Holder, chosen: Chosen, needed: Reach) -> Unlisted:
    """Return what the trees that the cache lacks have below them, as the records and the trees above them say.

    `needed` is the reach of `chosen`. Of files that are equal there is one object, so it may be fewer.
    """
    told = {tracked.digest: (tracked.files, tracked.size) for tracked, _ in chosen}
    for level in needed.steps[1:] if needed.unread else ():
        for digest in level:
            decoded = decode_tree(cache.read(digest), digest)
            below = decoded.leaves if isinstance(decoded, Index) else decoded
            told |= {item.digest: (item.files, item.size) for item in below if item.digest in needed.unread}
    found = [told[digest] for digest in needed.unread if digest in told]
    return Unlisted(len(needed.unread), sum(files for files, _ in found), sum(size for _, size in found))


def damaged_at(path: str, error: CorruptObject, hint: str = "") -> CorruptObject:
    """Return what to raise for a damaged object that the tracked `path` needs: the store knows its digest only.

    Without a `hint` of the caller's it is the store's, with the pull that brings this path.
    """
    return CorruptObject(
        f"`{path}`: {error.message}",
        hint=hint or (error.marked_hint or "").replace("`mlx pull`", f"`mlx pull {word(path)}`"),
    )


def not_cached(path: str, count: int) -> MissingObject:
    """Return what to raise when the cache lacks `count` objects of the tracked `path`."""
    return MissingObject(
        f"the cache lacks {count:,} object{'' if count == 1 else 's'} of `{path}`",
        hint=f"`mlx pull {word(path)}` brings {'it' if count == 1 else 'them'} from a remote",
    )


@contextmanager
def naming_listing(path: str, *revisions: str | None) -> Iterator[None]:
    """Name the tracked `path` in errors about its trees, and what brings those of `revisions` (None: the workspace)."""
    try:
        yield
    except MissingObject as error:
        named = "".join(f"--rev {revision} " for revision in revisions if revision is not None)
        hint = f"`mlx fetch {named}{word(path)}` brings it"
        raise MissingObject(f"the listing of `{path}` is not in the cache", hint=hint) from error
    except CorruptObject as error:
        raise damaged_at(path, error) from error


def resolve_part(trees: TreeSource, tracked: Tracked, part: str) -> Part:
    """Return what is meant; UsageError when `tracked` has no such part, MissingObject."""
    if not part:
        return Part(tracked.kind, tracked.digest, tracked.size)
    entry = find_part(trees, tracked, part)
    return Part(ObjectKind.TREE if entry.kind == Kind.FOLDER else ObjectKind.BLOB, entry.digest, entry.size)


def find_part(trees: TreeSource, tracked: Tracked, part: str) -> Entry:
    """Return the entry at `part`, a path below `tracked`; UsageError when there is none, MissingObject."""
    entry = find(trees, tracked.digest, split_path(part))
    if entry is None:
        raise UsageError(f"`{tracked.path}` has no `{part}`", hint=f"`mlx ls {word(tracked.path)}` lists what it has")
    return entry


def children(data: bytes, digest: Digest) -> tuple[list[Digest], dict[Digest, int]]:
    """Return the trees and the blobs (with sizes) directly below a tree object; an index's leaves are trees."""
    decoded = decode_tree(data, digest)
    if isinstance(decoded, Index):
        return [leaf.digest for leaf in decoded.leaves], {}
    trees = [entry.digest for entry in decoded if entry.kind == Kind.FOLDER]
    return trees, {entry.digest: entry.size for entry in decoded if entry.kind != Kind.FOLDER}
