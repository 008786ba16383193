"""`mlx evict`: drop local bytes that a remote verifiably holds.

The remote to which each path belongs is asked whether it has everything that the path needs. Then it is decided what
goes: the files of the workspace that are as recorded, and the objects of the cache that nothing else needs here. Only
then, with the cache held alone, is anything removed: files first, so that no link ever leads nowhere, then objects,
packs being written anew without them. Listings of folders stay: they are small, and tell what there is to pull.

Whatever kills this in between, what is left is there or on the remote, and the same command does the rest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from mlops_cli.errors import CorruptObject, MissingObject, MlxError, UsageError
from mlops_cli.files import translate_os_error
from mlops_cli.hashing import Digest, raw_digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.records.pointers import SUFFIX
from mlops_cli.store.cache import Cache
from mlops_cli.store.guard import alone
from mlops_cli.store.objects import DamagedObjects
from mlops_cli.store.recipes import Recipes
from mlops_cli.store.trees import Change, Kind, diff, walk
from mlops_cli.words import NAMED, naming, word, words
from mlops_cli.workspace.compare import as_entry
from mlops_cli.workspace.destinations import Destinations
from mlops_cli.workspace.extents import Extents, before_evicting, find_in_part, see
from mlops_cli.workspace.git import unpublished_files
from mlops_cli.workspace.listings import Listings
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.project_remote import open_project_remote
from mlops_cli.workspace.reach import Reach, find_part, reach
from mlops_cli.workspace.reservations import refuse_in_use
from mlops_cli.workspace.roots import Marker
from mlops_cli.workspace.scan import Scanner, open_scanner
from mlops_cli.workspace.snapshot import Snapshot, Tracked, lock_path, open_snapshot, select, workspace_snapshot
from mlops_cli.workspace.writing import apply_changes

_PACKS_AT_ONCE = 16  # packs that are written anew before the old ones go

Chosen = tuple[tuple[Tracked, str], ...]


@dataclass(frozen=True, slots=True)
class Evicted:
    """What evicting one path came to (in a dry run: would come to).

    `objects` went from the cache, where they took `size` bytes; `files` from the workspace, of `removed` bytes. `kept`
    objects stay, for something else needs them here; `edited` files stay, for they are not as recorded.
    """

    path: str
    remote: str
    objects: int = 0
    size: int = 0
    files: int = 0
    removed: int = 0
    kept: int = 0
    edited: int = 0


@dataclass(frozen=True, slots=True)
class Eviction:
    """What was evicted, path by path."""

    paths: tuple[Evicted, ...]

    @property
    def freed(self) -> int:
        """The bytes that went from the cache and the workspace."""
        return sum(each.size + each.removed for each in self.paths)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to remove."""
        return not any(each.objects or each.files for each in self.paths)


def evict(
    project: Project,
    targets: Sequence[str],
    *,
    cache_only: bool = False,
    verify: bool = False,
    dry_run: bool = False,
    agree: Callable[[Eviction], bool] = lambda _: True,
    reporter: Reporter = SILENT,
) -> Eviction:
    """Drop what `targets` have here and their remotes hold; with `cache_only`, the workspace stays as it is.

    Whether they hold it, the names and sizes of their files tell or, with `verify`, every byte. `agree` is asked once.
    Nothing has gone after UsageError or CorruptObject (a remote has not all of it), what `Marker` raises (it is unknown
    who needs what), RemoteError, or LockedError.
    """
    snapshot = workspace_snapshot(project)
    tracked = [entry for entry in snapshot.tracked() if not entry.git]
    chosen = select(tracked, targets)
    _refuse_kept(chosen)
    refuse_in_use(project, [f"{entry.path}/{part}" if part else entry.path for entry, part in chosen])
    remotes = _verify(project, chosen, verify=verify, reporter=reporter)
    around = _Around(project, snapshot, tracked, chosen, cache_only=cache_only, reporter=reporter)
    with open_scanner(project, reporter=reporter) as scanner:
        extents = find_in_part(project)
        files = {} if cache_only else _files(project, scanner, chosen, extents, reporter)
        _refuse_torn(files)
        foreseen = _foresee(project, chosen, remotes, around.look(), files)
        if dry_run or foreseen.empty or not agree(foreseen):
            return foreseen
        with project.guard.released(), _alone(project):
            needed = around.look()
            found = _foresee(project, chosen, remotes, needed, files)
            changes = [change for plan in files.values() for change in plan.changes]
            reporter.start("evicting", len(changes), "files")
            before_evicting(project, chosen, {pair: plan.gone for pair, plan in files.items() if plan.changes})
            apply_changes(project, scanner, changes, reporter, spare=True)
            here = project.cache.window
            _drop(here, _going(here, chosen, needed), reporter)
    _tell_unpublished(project, snapshot, chosen, reporter)
    return found


def _tell_unpublished(project: Project, snapshot: Snapshot, chosen: Chosen, reporter: Reporter) -> None:
    """Note what only this clone knows to be needed: a collection from another clone asks Git's remotes alone."""
    locks = {stage.address: lock_path(stage) for stage in snapshot.stages}
    records = {entry.path: locks.get(entry.stage, f"{entry.path}{SUFFIX}") for entry, _ in chosen}
    unknown = unpublished_files(project.root, sorted(set(records.values())))
    if alone := [path for path, record in records.items() if record in unknown]:
        reporter.note(
            f"Git's remotes have not what is recorded of {naming(sorted(alone))}: commit it and `git push`, "
            "or a `mlx remote gc` elsewhere takes it for needed by nobody"
        )


def _refuse_kept(chosen: Chosen) -> None:
    for entry, _ in chosen:
        if not entry.push:
            raise UsageError(
                f"`{entry.path}` is kept from remotes (`push: false`), so this may be its only copy",
                hint="take `push: false` out of its stage in `mlx.yaml`, then `mlx push` it",
            )


# Whether it is safe --------------------------------------------------------------------------------------------------


def _verify(project: Project, chosen: Chosen, *, verify: bool, reporter: Reporter) -> Mapping[str, str]:
    """Return the remote of each path; UsageError or CorruptObject when it has not all that the path needs."""
    remotes: dict[str, str] = {}
    division = Destinations(project).divide(chosen, None, sending=True)
    for name, share in division.shares.items():
        _, store = open_project_remote(project, name)
        needed = reach(Listings(project.cache, store), share)  # with what listings name that only the remote has
        wanted = {*needed.sizes, *needed.unread}
        missing = store.missing(wanted)
        if missing:
            raise _only_copy(store.label, needed, missing)
        reporter.start("verifying", sum(needed.sizes.values()) if verify else None, "bytes")
        faults = store.check(wanted, read=verify, jobs=project.config.core_jobs, reporter=reporter)
        if faults:
            damaged = [fault for fault in faults if isinstance(fault.error, DamagedObjects)]
            error = _only_copy(store.label, needed, {fault.digest for fault in faults}, "mlx push --repair")
            raise CorruptObject(error.message, hint=error.marked_hint) if damaged else error
        remotes |= {entry.path: name for entry, _ in share}
    return remotes


def _only_copy(label: str, needed: Reach, lacking: Collection[Digest], push: str = "mlx push") -> MlxError:
    paths = sorted({needed.owners[digest] for digest in lacking})
    count = f"{len(lacking):,} object{'' if len(lacking) == 1 else 's'}"
    return UsageError(
        f"{label} does not hold {count} of {naming(paths)}: what is here may be the only copy, and nothing was evicted",
        hint=f"`{push} {words(paths[:NAMED])}` first",
    )


# What else needs it --------------------------------------------------------------------------------------------------


class _Around:
    """What is needed here besides the paths that are evicted: objects, as 32-byte digests."""

    def __init__(
        self,
        project: Project,
        snapshot: Snapshot,
        tracked: Sequence[Tracked],
        chosen: Chosen,
        *,
        cache_only: bool,
        reporter: Reporter,
    ) -> None:
        self._project = project
        self._reporter = reporter
        self._marker = Marker(project.cache, project.git, allow_shallow=True, reporter=reporter)
        prefix = f"{project.prefix}/" if project.prefix else ""
        self._paths = {entry.path for entry, _ in chosen}
        self._left = {f"{prefix}{path}{SUFFIX}" for path in self._paths}
        # Locks name inputs, too, which stages do not need to have here: of their outputs, `_tracked` tells.
        self._left |= {f"{prefix}{lock_path(stage)}" for stage in snapshot.stages}
        places = [f"{entry.path}/{part}" if part else entry.path for entry, part in chosen]
        self._passed = () if cache_only else tuple(os.fspath(project.root / place) for place in places)
        self._tracked = [entry for entry in tracked if entry.path not in self._paths]
        self._rest = frozenset(map(raw_digest, _rest(project.cache, chosen)))

    def look(self) -> frozenset[bytes]:
        """Look, or look again: what was read once is not read twice."""
        self._project.cache.packs.forget()
        self._reporter.start("looking for what else is needed", None, "files")
        try:
            self._marker.look_beside(self._left.__contains__, self._passed)
        except MlxError as error:
            if "--salvage" in (error.marked_hint or ""):  # that is for who cannot ask a remote
                error.marked_hint = "nothing was evicted; mend that first, or `mlx fsck --repair` does"
            raise
        others = [*self._tracked, *self._committed()]
        found = reach(self._project.cache, [(entry, "") for entry in others])
        return frozenset(self._marker.needed.objects) | self._rest | frozenset(map(raw_digest, found.sizes))

    def _committed(self) -> Iterator[Tracked]:
        """Yield what HEAD tracks at other paths."""
        try:
            with open_snapshot(self._project, "HEAD") as head:
                yield from (entry for entry in head.tracked() if entry.path not in self._paths and not entry.git)
        except UsageError:  # no commit yet
            return


def _rest(cache: Cache, chosen: Chosen) -> Iterator[Digest]:
    """Yield the files of tracked folders, of which parts are evicted, that are in none of these parts."""
    parts: dict[Tracked, list[bytes]] = {}
    for entry, part in chosen:
        if part:
            parts.setdefault(entry, []).append(os.fsencode(part))
    for entry, going in parts.items():
        below = tuple(part + b"/" for part in going)
        for path, found in _walk(cache, entry.digest):
            if path not in going and not path.startswith(below):
                yield found


def _walk(cache: Cache, digest: Digest) -> Iterator[tuple[bytes, Digest]]:
    try:
        for path, entry in walk(cache, digest):
            if entry.kind != Kind.FOLDER:
                yield path, entry.digest
    except MissingObject:  # below a listing that is not here nothing can be told apart: it is on the remote
        return


# What goes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Files:
    """The files of a path that go from the workspace, their bytes, and how many stay because they were edited.

    `gone` are paths that somebody has deleted: these are not evicted.
    """

    changes: tuple[Change, ...] = ()
    size: int = 0
    edited: int = 0
    gone: tuple[bytes, ...] = ()


def _files(
    project: Project, scanner: Scanner, chosen: Chosen, extents: Extents, reporter: Reporter
) -> dict[tuple[str, str], _Files]:
    reporter.start("checking", None, "files")
    return {(entry.path, part): _of_path(project, scanner, entry, part, extents) for entry, part in chosen}


def _of_path(project: Project, scanner: Scanner, entry: Tracked, part: str, extents: Extents) -> _Files:
    path = f"{entry.path}/{part}" if part else entry.path
    place = os.fsencode(path)
    present = scanner.look(path)
    if present is None:
        return _Files()
    try:
        recorded = find_part(scanner, entry, part) if part else as_entry(entry)
        if present.kind != Kind.FOLDER or recorded.kind != Kind.FOLDER:
            unchanged = (recorded.digest, recorded.kind) == (present.digest, present.kind)
            if not unchanged:
                return _Files(edited=1)
            return _Files((Change(place, present, None),), _size_of(project, path, present.size))
        seen = see(scanner, extents, entry, part, present).entry or present
        changed = diff(scanner, recorded.digest, seen.digest, place + b"/")
        going = diff(scanner, present.digest, None, place + b"/").deleted
    except MissingObject:
        return _Files(edited=present.files)  # what was recorded is not known here
    emptied = _folders_above(change.path for change in changed.deleted)  # as by an eviction that was killed
    other = {change.path for change in (*changed.added, *changed.modified) if change.path not in emptied}
    going = tuple(change for change in going if change.path not in other)
    size = sum(_size_of(project, os.fsdecode(change.path), change.old.size) for change in going if change.old)
    return _Files(going, size, len(other), tuple(change.path for change in changed.deleted))


def _folders_above(paths: Iterable[bytes]) -> set[bytes]:
    found: set[bytes] = set()
    for path in paths:
        while (path := path.rpartition(b"/")[0]) and path not in found:
            found.add(path)
    return found


def _refuse_torn(files: Mapping[tuple[str, str], _Files]) -> None:
    """Raise UsageError for a folder with edits: what was edited stays, and is no longer seen among what went."""
    for (owner, part), plan in files.items():
        if plan.edited and plan.changes:
            path = f"{owner}/{part}" if part else owner
            count, path_word = f"{plan.edited:,} file{'' if plan.edited == 1 else 's'}", word(owner)
            raise UsageError(
                f"`{path}` is not as recorded ({count}), and no remote has what was edited: nothing was evicted",
                hint=f"`mlx add {path_word}` and `mlx push {path_word}` keep what was edited, "
                f"`mlx checkout --force {path_word}` throws it away; `--cache-only` leaves the workspace alone",
            )


def _size_of(project: Project, path: str, size: int) -> int:
    """Return the bytes that a file takes in the workspace: a link to an object takes none."""
    return 0 if os.path.islink(project.root / path) else size


def _going(cache: Cache, chosen: Chosen, needed: Collection[bytes]) -> dict[Digest, int]:
    """Return the objects of `chosen` that go, with their sizes; listings and what is `needed` stay."""
    found: dict[Digest, int] = {}
    for entry, part in chosen:
        found |= {digest: size for digest, size in _blobs(cache, entry, part) if raw_digest(digest) not in needed}
    return {digest: found[digest] for digest in found.keys() - cache.missing(found)}


def _blobs(cache: Cache, entry: Tracked, part: str) -> Iterable[tuple[Digest, int]]:
    needed = reach(cache, [(entry, part)])
    blobs = needed.steps[0] if needed.steps else []
    return [(digest, needed.sizes[digest]) for digest in blobs]


def _foresee(
    project: Project,
    chosen: Chosen,
    remotes: Mapping[str, str],
    needed: Collection[bytes],
    files: Mapping[tuple[str, str], _Files],
) -> Eviction:
    cache = project.cache.window
    going = _going(cache, chosen, needed)
    told: dict[str, Evicted] = {}
    counted: set[Digest] = set()
    for entry, part in chosen:
        found = told.get(entry.path) or Evicted(entry.path, remotes[entry.path])
        own = [digest for digest, _ in _blobs(cache, entry, part)]
        new = [digest for digest in own if digest in going and digest not in counted]
        counted.update(new)
        staying = set(own) - going.keys()
        plan = files.get((entry.path, part), _Files())
        told[entry.path] = replace(
            found,
            objects=found.objects + len(new),
            size=found.size + sum(cache.stored_size(digest, going[digest]) or 0 for digest in new),
            files=found.files + len(plan.changes),
            removed=found.removed + plan.size,
            kept=found.kept + len(staying - cache.missing(staying)),
            edited=found.edited + plan.edited,
        )
    return Eviction(tuple(told.values()))


# Doing it ------------------------------------------------------------------------------------------------------------


def _alone(project: Project) -> AbstractContextManager[None]:
    return alone(project.cache.root, doing="mlx evict", timeout=project.config.core_lock_timeout)


def _drop(cache: Cache, going: Collection[Digest], reporter: Reporter) -> None:
    """Remove objects from the cache; packs that hold some are written anew, some at a time."""
    cache.packs.forget()
    reporter.start("evicting", len(going), "objects")
    try:
        by_pack: dict[str, list[Digest]] = {}
        for digest, place in cache.packs.find_all(going).items():
            by_pack.setdefault(place.pack, []).append(digest)
    except OSError as error:
        raise translate_os_error(error, f"look into the cache `{cache.root}`") from error
    packed = {digest for digests in by_pack.values() for digest in digests}
    names = sorted(by_pack)
    for start in range(0, len(names), _PACKS_AT_ONCE):
        batch = [digest for name in names[start : start + _PACKS_AT_ONCE] for digest in by_pack[name]]
        cache.delete(batch)
        reporter.advance(len(batch))
    loose = [digest for digest in going if digest not in packed]
    cache.delete(loose)
    reporter.advance(len(loose))
    Recipes(cache).drop_orphans()
