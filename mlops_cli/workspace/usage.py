"""`mlx du`: what the tracked paths take in a store, and what of it they share.

An object counts once for each path that needs it, whatever number of its files have these bytes; what only one path
needs is what a store would save without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlops_cli.errors import CorruptObject, MissingObject, UsageError
from mlops_cli.hashing import Digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.records.pointers import ObjectKind
from mlops_cli.store.space import Part, measure_parts
from mlops_cli.store.trees import TreeSource, tree_objects
from mlops_cli.workspace.history import recorded
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.snapshot import Tracked, open_snapshot, select


@dataclass(frozen=True, slots=True)
class Used:
    """One version of a tracked path; sizes in bytes.

    `size` is that of its files. `unique` and `shared` count each of its objects once, listings included: those that
    nothing else in the answer's scope needs, and the others; None when a listing is not in the cache. `revision` is the
    commit that recorded it, None for the records that were asked about.
    """

    path: str
    revision: str | None
    digest: Digest
    size: int
    files: int
    unique: int | None
    shared: int | None


@dataclass(frozen=True, slots=True)
class Usage:
    """What the paths take, all of them together (`total` counts each object once), and the cache's parts."""

    used: tuple[Used, ...]
    total: int
    cache: tuple[Part, ...]


def measure(
    project: Project,
    targets: Sequence[str] = (),
    *,
    revision: str | None = None,
    every: bool = False,
    reporter: Reporter = SILENT,
) -> Usage:
    """Return what is needed by the records of the workspace or `revision`; with `every`, by every commit's as well.

    `targets` choose what is told; what is shared is told with regard to everything. UsageError for a target that is
    not tracked, or is a part of what is.
    """
    with open_snapshot(project, revision) as snapshot:
        versions = [(None, entry) for entry in snapshot.tracked() if not entry.git]
    known = {(entry.path, entry.digest) for _, entry in versions}
    found: list[tuple[str | None, Tracked]] = list(versions)
    if every:
        for commit, entry in recorded(project):
            if (entry.path, entry.digest) not in known:
                known.add((entry.path, entry.digest))
                found.append((commit, entry))
    chosen = _chosen([entry for _, entry in found], targets)
    reporter.start("measuring", len(found), "paths")
    needs = [_Need() for _ in found]
    _count(project.cache, [entry for _, entry in found], needs, reporter)
    used = [
        Used(entry.path, commit, entry.digest, entry.size, entry.files, need.unique, need.shared)
        for (commit, entry), need in zip(found, needs, strict=True)
        if entry.path in chosen
    ]
    used.sort(key=lambda item: item.path)  # of one path, the order is that of the history
    total = _distinct(project.cache, [entry for _, entry in found if entry.path in chosen])
    return Usage(tuple(used), total, measure_parts(project.cache.root))


def _chosen(tracked: Iterable[Tracked], targets: Sequence[str]) -> set[str]:
    chosen = select({entry.path: entry for entry in tracked}.values(), targets)
    for entry, part in chosen:
        if part:
            raise UsageError(
                f"`{entry.path}/{part}` is a part of `{entry.path}`, which is tracked as a whole",
                hint=f"`mlx ls {entry.path}` tells the sizes of its parts",
            )
    return {entry.path for entry, _ in chosen}


@dataclass(slots=True)
class _Need:
    unique: int | None = 0
    shared: int | None = 0


def _count(trees: TreeSource, tracked: Sequence[Tracked], needs: Sequence[_Need], reporter: Reporter) -> None:
    """Fill `needs`, which go with `tracked`: of an object needed twice, the first learns that when the second comes."""
    sole: dict[Digest, int] = {}  # whose it is alone; -1 when several need it
    for number, entry in enumerate(tracked):
        need = needs[number]
        reporter.advance(1)
        try:
            for digest, size in _objects(trees, entry):
                first = sole.setdefault(digest, number)
                if first == number:
                    _move(need, unique=size)
                    continue
                _move(need, shared=size)
                if first >= 0:
                    _move(needs[first], unique=-size, shared=size)
                    sole[digest] = -1
        except (MissingObject, CorruptObject):
            need.unique = need.shared = None


def _move(need: _Need, *, unique: int = 0, shared: int = 0) -> None:
    if need.unique is not None and need.shared is not None:
        need.unique += unique
        need.shared += shared


def _objects(trees: TreeSource, entry: Tracked) -> Iterable[tuple[Digest, int]]:
    return tree_objects(trees, entry.digest) if entry.kind is ObjectKind.TREE else [(entry.digest, entry.size)]


def _distinct(trees: TreeSource, tracked: Sequence[Tracked]) -> int:
    """Return the bytes of all objects that `tracked` need, each counted once, as far as their listings are here."""
    seen: set[Digest] = set()
    total = 0
    for entry in tracked:
        try:
            for digest, size in _objects(trees, entry):
                if digest not in seen:
                    seen.add(digest)
                    total += size
        except (MissingObject, CorruptObject):
            continue
    return total
