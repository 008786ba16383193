"""`mlx fsck`: whether the cache holds what the records need, every byte as it was stored.

The store is read first, by its own bytes alone. Then the records say which tracked path each damaged object belongs to
(the workspace's, else HEAD's, else those of the newest commit that names it), and which objects are not here at all.
A remote may bring good ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from mlops_cli.errors import CorruptObject, MissingObject, UsageError
from mlops_cli.files import translate_os_error
from mlops_cli.hashing import Digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.cache import Cache
from mlops_cli.store.checkup import Checkup, DamagedObject, Scope, check_store, peek
from mlops_cli.store.objects import AbsentObjects, DamagedObjects
from mlops_cli.store.transfer import copy_objects
from mlops_cli.workspace.history import recorded
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.reach import Reach, reach
from mlops_cli.workspace.snapshot import Tracked, open_snapshot, workspace_snapshot
from mlops_cli.workspace.sync import open_project_remote


@dataclass(frozen=True, slots=True)
class Fault:
    """An object that is damaged or absent, and the tracked paths that need it.

    There are no `paths` when no record that can be read names the object; `stage` is whose output the first is;
    `revision` the commit whose records they are, None for the workspace's. `moved` is where damaged bytes are now
    (below the cache), None when they are where they were. `mended`: good bytes are here now.
    """

    digest: Digest
    why: str
    paths: tuple[str, ...] = ()
    stage: str = ""
    revision: str | None = None
    moved: str | None = None
    mended: bool = False

    @property
    def path(self) -> str:
        """The first of the paths, empty when there is none."""
        return self.paths[0] if self.paths else ""


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found, and how many objects a remote brought."""

    checkup: Checkup
    damaged: tuple[Fault, ...]
    absent: tuple[Fault, ...]
    remote: str = ""
    repaired: int = 0
    repairing: bool = False

    @property
    def exit_code(self) -> int:
        """5 when something is damaged, 4 when something is only absent, else 0; what was repaired as asked is well."""
        well = self.repairing
        broken = any(not (well and fault.mended) for fault in self.damaged)
        if broken or any(not (well and file.rebuilt) for file in self.checkup.files):
            return 5
        return 4 if any(not fault.mended for fault in self.absent) else 0


def examine(
    project: Project,
    scope: Scope,
    *,
    repair: bool = False,
    remote: str | None = None,
    dry_run: bool = False,
    reporter: Reporter = SILENT,
) -> Examination:
    """Read the cache, as much as `scope` says, put away what is damaged, and with `repair` bring good bytes.

    A dry run moves, writes and brings nothing. UsageError for a remote that there is none of; RemoteError.
    """
    if repair:
        remote, store = open_project_remote(project, remote)
    elif remote:
        raise UsageError("`--remote` says where `--repair` brings objects from", hint="give both, or neither")
    tracked = [entry for entry in workspace_snapshot(project).tracked() if not entry.git]
    try:
        checkup = check_store(project.cache, scope, dry_run=dry_run, reporter=reporter)
    except OSError as error:
        raise translate_os_error(error, f"read the cache `{project.cache.root}`") from error
    seen = _Seen(project.cache, checkup.damaged, dry_run=dry_run)
    needs = _Needs(seen, tracked)
    tried: set[Digest] = set()
    if repair and not dry_run:
        reporter.start("fetching", None, "bytes")
        with project.guard.held():
            while wanted := sorted(seen.missing({*seen.damaged, *needs.absent}) - tried):
                tried.update(wanted)
                with suppress(AbsentObjects, DamagedObjects):  # what did not come is told below
                    jobs = project.config.core_jobs
                    copy_objects(wanted, store, project.cache, jobs=jobs, reporter=reporter)
                needs = _Needs(seen, tracked)  # a tree that came may name more
    lost = sorted({*seen.damaged, *needs.absent, *tried})
    brought = len(tried) - len(seen.missing(tried))
    return _told(project, seen, needs, lost, Examination(checkup, (), (), remote or "", brought, repair))


def _told(project: Project, seen: _Seen, needs: _Needs, lost: Sequence[Digest], found: Examination) -> Examination:
    """Return `found` with every fault, named by the tracked path that it belongs to."""
    missing = seen.missing(lost)
    owners = needs.owners(lost)
    unknown = {digest for digest in seen.damaged if digest not in owners}
    older = dict(_find_owners(project, seen, unknown))

    def fault(digest: Digest, why: str, moved: str | None = None) -> Fault:
        revision, owner = older.get(digest, (None, None))
        entries = owners.get(digest) or ([owner] if owner else [])
        stage = entries[0].stage if entries else ""
        paths = tuple(entry.path for entry in entries)
        return Fault(digest, why, paths, stage, revision, moved, digest not in missing)

    damaged = [fault(digest, item.why, item.moved) for digest, item in seen.damaged.items()]
    absent = [fault(digest, "it is not in the cache") for digest in lost if digest not in seen.damaged]
    return replace(found, damaged=tuple(sorted(damaged, key=_order)), absent=tuple(sorted(absent, key=_order)))


def _order(fault: Fault) -> tuple[str, str]:
    return fault.path, fault.digest


class _Seen:
    """The cache without what is known to be damaged in it; what is read turns out so is put away too."""

    def __init__(self, cache: Cache, damaged: Sequence[DamagedObject], *, dry_run: bool) -> None:
        self.damaged = {item.digest: item for item in damaged}
        self._cache = cache
        self._dry_run = dry_run
        self._hidden = {item.digest for item in damaged if item.moved is None}

    def missing(self, digests: Collection[Digest]) -> set[Digest]:
        """Return those of `digests` that are not here, or not good."""
        return self._cache.missing(digests) | self._hidden.intersection(digests)

    def read(self, digest: Digest) -> bytes:
        """Return a tree; MissingObject, also for one that is damaged."""
        if digest in self._hidden:
            raise MissingObject(f"object `{digest}` is damaged")
        try:
            return peek(self._cache, digest)
        except DamagedObjects as error:
            self._put_away(digest, error.message)
            raise MissingObject(error.message) from error

    def _put_away(self, digest: Digest, why: str) -> None:
        moved = None
        if not self._dry_run:
            with suppress(OSError):
                moved = self._cache.quarantine(digest).relative_to(self._cache.root).as_posix()
        if moved is None:
            self._hidden.add(digest)
        self.damaged[digest] = DamagedObject(digest, why, moved)


class _Needs:
    """What the records of the workspace need: which of it is `absent`, and who needs what."""

    def __init__(self, seen: _Seen, tracked: Sequence[Tracked]) -> None:
        self.absent: set[Digest] = set()
        self._seen = seen
        # What remotes never get is only in the clone that made it.
        self._tracked = [entry for entry in tracked if entry.push or not seen.missing([entry.digest])]
        for entry in self._tracked:
            found = _reach(seen, entry)
            self.absent |= found.unread | seen.missing(found.sizes)

    def owners(self, digests: Collection[Digest]) -> dict[Digest, list[Tracked]]:
        """Return the tracked paths that need each of `digests`, for those that some do."""
        found: dict[Digest, list[Tracked]] = {}
        for entry in self._tracked if digests else ():
            for digest in _reach(self._seen, entry).owners.keys() & set(digests):
                found.setdefault(digest, []).append(entry)
        return found


def _reach(seen: _Seen, entry: Tracked) -> Reach:
    while True:
        before = len(seen.damaged)
        try:
            return reach(seen, [(entry, "")])
        except MissingObject:  # a tree that was here, and turned out to be damaged
            if len(seen.damaged) == before:
                raise
        except CorruptObject as error:  # its bytes are its own, but it is no tree: the record is wrong
            seen.damaged[entry.digest] = DamagedObject(entry.digest, error.message, None)
            return Reach(owners={entry.digest: entry.path})


def _find_owners(
    project: Project, seen: _Seen, wanted: Collection[Digest]
) -> Iterator[tuple[Digest, tuple[str | None, Tracked]]]:
    """Yield each of `wanted` that a committed record names, with the newest commit that does."""
    left = set(wanted)
    known: set[Digest] = set()
    history = _history(project) if left else iter(())
    for revision, entry in history:
        if entry.digest in known:
            continue
        known.add(entry.digest)
        for digest in left.intersection(_reach(seen, entry).owners):
            yield digest, (revision, entry)
            left.discard(digest)
        if not left:
            return


def _history(project: Project) -> Iterator[tuple[str, Tracked]]:
    """Yield what HEAD tracks, then what every commit recorded, newest first."""
    with suppress(UsageError), open_snapshot(project, "HEAD") as snapshot:  # no commit yet; no record there
        yield from [("HEAD", entry) for entry in snapshot.tracked()]
    yield from recorded(project)
