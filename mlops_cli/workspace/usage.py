"""`mlx du`: what the tracked paths take in a store, and what of it they share.

An object counts once for each path that needs it, whatever number of its files have these bytes, and as it is stored:
compressed when it is, not at all when it is not here. What only one path needs is what the cache would save without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mlops_cli.errors import CorruptObject, MissingObject, UsageError
from mlops_cli.hashing import Digest, raw_digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.records.pointers import ObjectKind
from mlops_cli.store.cache import Cache
from mlops_cli.store.space import Part, measure_parts
from mlops_cli.store.trees import TreeSource, tree_objects
from mlops_cli.words import word
from mlops_cli.workspace.history import recorded
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.snapshot import Tracked, open_snapshot, select

_REPORT_EVERY = 4096


@dataclass(frozen=True, slots=True)
class Used:
    """One version of a tracked path; sizes in bytes.

    `size` is that of its files. `unique` and `shared` are what its objects take in the cache, each counted once and
    listings included: those that nothing else in the answer's scope needs, and the others. `absent` objects are not
    here and take nothing. All three are None when a listing is not here. `revision` is the commit that recorded it,
    None for the records that were asked about.
    """

    path: str
    revision: str | None
    digest: Digest
    size: int
    files: int
    unique: int | None
    shared: int | None
    absent: int | None

    @property
    def stored(self) -> int | None:
        """What it takes in the cache, whoever else needs it."""
        return None if self.unique is None or self.shared is None else self.unique + self.shared


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
    reporter.start("measuring", None, "objects")
    count = _Count(project.cache, len(found), reporter)
    for number, (_, entry) in enumerate(found):
        count.add(number, entry, told=entry.path in chosen)
    used = [
        Used(entry.path, commit, entry.digest, entry.size, entry.files, need.unique, need.shared, need.absent)
        for (commit, entry), need in zip(found, count.needs, strict=True)
        if entry.path in chosen
    ]
    used.sort(key=lambda item: item.path)  # of one path, the order is that of the history
    return Usage(tuple(used), count.total, measure_parts(project.cache.root))


def _chosen(tracked: Iterable[Tracked], targets: Sequence[str]) -> set[str]:
    chosen = select({entry.path: entry for entry in tracked}.values(), targets)
    for entry, part in chosen:
        if part:
            raise UsageError(
                f"`{entry.path}/{part}` is a part of `{entry.path}`, which is tracked as a whole",
                hint=f"`mlx ls {word(entry.path)}` tells the sizes of its parts",
            )
    return {entry.path for entry, _ in chosen}


@dataclass(slots=True)
class _Need:
    unique: int | None = 0
    shared: int | None = 0
    absent: int | None = 0

    def take(self, *, unique: int = 0, shared: int = 0) -> None:
        if self.unique is not None and self.shared is not None:
            self.unique += unique
            self.shared += shared

    def lack(self) -> None:
        if self.absent is not None:
            self.absent += 1

    def forget(self) -> None:
        self.unique = self.shared = self.absent = None


class _Count:
    """What `number` versions of paths need, each added once; `total` counts each object of those that are told once."""

    def __init__(self, cache: Cache, number: int, reporter: Reporter) -> None:
        self.needs = [_Need() for _ in range(number)]
        self.total = 0
        self._cache = cache
        self._reporter = reporter
        self._sole: dict[bytes, int] = {}  # by 32-byte digest: whose it is alone; -1 when several need it
        self._told: set[bytes] = set()

    def add(self, number: int, entry: Tracked, *, told: bool) -> None:
        """Count an entry: of an object needed twice, the first who needs it learns that when the second comes."""
        need = self.needs[number]
        try:
            for seen, (digest, size) in enumerate(_objects(self._cache, entry), start=1):
                if seen % _REPORT_EVERY == 0:
                    self._reporter.advance(_REPORT_EVERY)
                raw = raw_digest(digest)
                stored = self._cache.stored_size(digest, size)
                if stored is None:
                    need.lack()
                    continue
                if told and raw not in self._told:
                    self._told.add(raw)
                    self.total += stored
                first = self._sole.setdefault(raw, number)
                if first == number:
                    need.take(unique=stored)
                    continue
                need.take(shared=stored)
                if first >= 0:
                    self.needs[first].take(unique=-stored, shared=stored)
                    self._sole[raw] = -1
        except (MissingObject, CorruptObject):
            need.forget()


def _objects(trees: TreeSource, entry: Tracked) -> Iterable[tuple[Digest, int]]:
    return tree_objects(trees, entry.digest) if entry.kind is ObjectKind.TREE else [(entry.digest, entry.size)]
