"""`mlx push`, `fetch` and `pull`: records → wanted digests → transfer.

What is meant is what the workspace's records name now, narrowed to the targets. Blobs go up before the trees that name
them, so that a tree on a remote is a promise about what lies beneath; coming down, trees go first, because they say
which blobs are wanted.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from mlops_cli.errors import CorruptObject, MissingObject, MlxError, RemoteError, UsageError
from mlops_cli.hashing import Digest, fingerprint
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.records.pointers import ObjectKind
from mlops_cli.store.buckets import open_bucket
from mlops_cli.store.cache import Cache
from mlops_cli.store.download import REPAIR
from mlops_cli.store.objects import AbsentObjects, DamagedObjects
from mlops_cli.store.parcels import Wanted
from mlops_cli.store.remote import Remote, Transferred
from mlops_cli.store.remote_checkup import Fault
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.reach import (
    NOTHING_UNLISTED,
    Reach,
    Unlisted,
    children,
    damaged_at,
    measure_unread,
    reach,
    resolve_part,
    trees_above,
)
from mlops_cli.workspace.remote_projects import announce
from mlops_cli.workspace.remotes import default_remote
from mlops_cli.workspace.snapshot import Tracked
from mlops_cli.workspace.versions import THE_WORKSPACE, Versions, select_versions


class Lacking(NamedTuple):
    """A tracked path of which a remote lacks something: how many objects, and their bytes as far as they are known."""

    path: str
    objects: int
    size: int


class Trust(Enum):
    """What a push believes of what is on a remote already: its index, the names and sizes of its files, or nothing."""

    INDEX = "index"
    FILES = "files"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What was (or, in a dry run, would be) transferred; `size` in bytes is None when only a transfer would tell it.

    `requests` is how often the remote was asked for something, `transferred` how many bytes went to it and came from
    it; `repaired` how many objects its index named that it did not have as they were written.
    `unread` are tracked paths with a folder whose listing only the remote has: what it lists was not looked for there.
    `unlisted` is what a dry run cannot count among the objects, and `known` their bytes as far as they are known.
    """

    remote: str
    url: str
    paths: tuple[str, ...]
    objects: int
    size: int | None
    requests: int = 0
    transferred: int = 0
    repaired: int = 0
    unread: tuple[str, ...] = ()
    unlisted: Unlisted = NOTHING_UNLISTED
    known: int = 0


def open_project_remote(project: Project, name: str | None) -> tuple[str, Remote]:
    """Return the remote `name`, or the default one, with its name; UsageError when there is none of that name.

    Nothing is contacted before the first verb. RemoteError when the URL's protocol is unknown or its package is not
    installed.
    """
    chosen = choose_remote(project, name)
    url = project.config.remotes[chosen].url
    bucket = open_bucket(chosen, url, project.root, durability=project.cache.durability)
    return chosen, Remote(bucket, str(project.local / "remotes" / fingerprint(url)))


def choose_remote(project: Project, name: str | None) -> str:
    """Return the name of the remote that `name`, or the default, means; UsageError when there is none of that name."""
    remotes = project.config.remotes
    chosen = name or default_remote(project)
    if chosen is None:
        raise UsageError(
            "this project has no remote", hint="`mlx remote add storage URL` makes one; a folder is a URL too"
        )
    if chosen not in remotes:
        known = ", ".join(f"`{remote}`" for remote in remotes) or "none"
        raise UsageError(f"there is no remote `{chosen}` (there is: {known})", hint=f"`mlx remote add {chosen} URL`")
    return chosen


def push(
    project: Project,
    targets: Sequence[str] = (),
    *,
    versions: Versions = THE_WORKSPACE,
    remote: str | None = None,
    jobs: int = 0,
    dry_run: bool = False,
    trust: Trust = Trust.INDEX,
    reporter: Reporter = SILENT,
) -> SyncResult:
    """Upload what the records of `targets` name, in each of `versions`, and the remote lacks.

    What it lacks, its index tells; `trust` says whether that is believed.
    MissingObject when the cache does not hold it either; CorruptObject when the cache's bytes are damaged; RemoteError.
    """
    name, store = open_project_remote(project, remote)
    chosen = _pushable(select_versions(project, targets, versions), targets)
    needed = reach(project.cache, chosen)
    faults = _distrust(project.cache, store, needed, trust, dry_run=dry_run, jobs=jobs, reporter=reporter)
    missing = store.missing({*needed.sizes, *needed.unread})
    if missing & needed.unread:
        _refuse_gone(store)
        raise _unreadable(needed, store.label, missing & needed.unread)
    # A tree that is on the remote already came after everything beneath it.
    ordered = [digest for digest in needed.sizes if digest in missing]
    size = sum(needed.sizes[digest] for digest in ordered)
    if not dry_run and ordered:
        absent = project.cache.missing(ordered)
        if absent:
            _refuse_gone(store)
            raise _unpushable(needed, store.label, absent, {tracked.path: tracked.stage for tracked, _ in chosen})
        reporter.start("pushing", size, "bytes")
        try:
            with project.guard.held():
                blobs, *levels = ([digest for digest in step if digest in missing] for step in needed.steps)
                wanted = Wanted(blobs, [digest for level in levels for digest in level], needed.sizes)
                announce(project, store.bucket, store.url)
                store.send(project.cache, wanted, jobs=jobs or project.config.core_jobs, reporter=reporter)
        except DamagedObjects as error:
            raise _damaged(needed, error, "`mlx add {path}` or `mlx run` makes a good one again") from error
    paths = tuple(sorted({entry.path for entry, _ in chosen}))
    unread = tuple(sorted({needed.owners[digest] for digest in needed.unread}))
    traffic = store.bucket.traffic
    moved = traffic.sent + traffic.received
    return SyncResult(name, store.url, paths, len(ordered), size, traffic.requests, moved, len(faults), unread)


def find_unpushed(project: Project) -> tuple[Remote, tuple[Lacking, ...]]:
    """Return the default remote, and what it lacks of what the workspace's records name; an object counts once.

    UsageError when there is no remote; RemoteError.
    """
    _, store = open_project_remote(project, None)
    chosen = [pair for pair in select_versions(project, (), THE_WORKSPACE) if pair[0].push]
    needed = reach(project.cache, chosen)
    found: dict[str, list[int]] = {}
    for digest in store.missing({*needed.sizes, *needed.unread}):
        found.setdefault(needed.owners[digest], []).append(needed.sizes.get(digest, 0))
    return store, tuple(Lacking(path, len(sizes), sum(sizes)) for path, sizes in sorted(found.items()))


def _distrust(
    cache: Cache, store: Remote, needed: Reach, trust: Trust, *, dry_run: bool, jobs: int, reporter: Reporter
) -> list[Fault]:
    """Return what of `needed` the remote has not as its index says; from now on that is missing there.

    So are the trees above it: who has only them takes them for a promise about what is beneath.

    CorruptObject, or MissingObject when no byte is wrong, unless it is to be repaired.
    """
    if trust is Trust.INDEX:
        return []
    repairing = trust is Trust.NOTHING
    if repairing and not dry_run:
        for name in store.mend_index():
            reporter.note(
                f"`{name}` of {store.label} was damaged: who else pushed there should `mlx push --repair` too"
            )
    reporter.start("verifying", sum(needed.sizes.values()) if repairing else None, "bytes")
    faults = store.check({*needed.sizes, *needed.unread}, read=repairing, jobs=jobs, reporter=reporter)
    if faults and not repairing:
        raise _untrue(store, needed, faults)
    if faults:
        store.deny(trees_above(cache, needed, {fault.digest for fault in faults}))
        if not dry_run:
            store.forget_faults()
    return faults


_REPAIR = "the same `mlx push` with `--repair` sends it again, from a clone that has it"


def _untrue(store: Remote, needed: Reach, faults: Sequence[Fault]) -> MlxError:
    paths = sorted({needed.owners[fault.digest] for fault in faults})
    named = ", ".join(f"`{path}`" for path in paths[:3]) + (f" and {len(paths) - 3:,} more" if len(paths) > 3 else "")
    damaged = [fault for fault in faults if isinstance(fault.error, DamagedObjects)]
    first = (damaged or faults)[0].error.message
    count = f"{len(faults):,} object{'' if len(faults) == 1 else 's'}"
    kind = CorruptObject if damaged else MissingObject
    return kind(f"{store.label} has not what its index says, {count} of {named}: {first}", hint=_REPAIR)


def _refuse_gone(store: Remote) -> None:
    """Raise RemoteError when a remote lacks objects because it is itself not there."""
    if isinstance(error := store.absent([]), RemoteError):
        raise error


def find_absent(cache: Cache, store: Remote, chosen: Iterable[tuple[Tracked, str]]) -> set[Digest]:
    """Return the objects that `chosen` needs and neither store has; what lies below a tree there counts as there.

    Nothing is downloaded. RemoteError when `store` is not there.
    """
    needed = reach(cache, chosen)
    absent = store.missing(cache.missing(needed.sizes) | needed.unread)
    if absent:
        _refuse_gone(store)
    return absent


def fetch(
    project: Project,
    targets: Sequence[str] = (),
    *,
    versions: Versions = THE_WORKSPACE,
    remote: str | None = None,
    jobs: int = 0,
    dry_run: bool = False,
    reporter: Reporter = SILENT,
) -> SyncResult:
    """Bring what the records of `targets` name, in each of `versions`, and the cache lacks from the remote.

    MissingObject when the remote does not hold it either. A dry run downloads nothing: below a folder whose tree is not
    here it cannot count objects, and `size` is None; `unlisted` tells the files there.
    """
    chosen = _fetchable(select_versions(project, targets, versions), targets)
    paths = tuple(sorted({entry.path for entry, _ in chosen}))
    needed = reach(project.cache, chosen)
    lacking = project.cache.missing(needed.sizes)
    if not lacking and not needed.unread:
        name = choose_remote(project, remote) if remote or default_remote(project) else ""
        return SyncResult(name, project.config.remotes[name].url if name else "", paths, 0, 0)
    name, store = open_project_remote(project, remote)
    url = project.config.remotes[name].url
    if dry_run:
        known = sum(needed.sizes[digest] for digest in lacking)
        unlisted = measure_unread(project.cache, chosen, needed)
        size = None if needed.unread else known
        return SyncResult(name, url, paths, len(lacking) + len(needed.unread), size, unlisted=unlisted, known=known)
    reporter.start("fetching", None, "bytes")
    try:
        with project.guard.held():
            done = fetch_objects(project.cache, store, chosen, jobs=jobs or project.config.core_jobs, reporter=reporter)
    except AbsentObjects as error:
        _refuse_gone(store)
        raise _unfetchable(reach(project.cache, chosen), store.label, error) from error
    except DamagedObjects as error:
        raise _damaged(reach(project.cache, chosen), error) from error
    traffic = store.bucket.traffic
    return SyncResult(name, url, paths, done.objects, done.bytes, traffic.requests, traffic.sent + traffic.received)


def _pushable(chosen: Iterable[tuple[Tracked, str]], targets: Sequence[str]) -> list[tuple[Tracked, str]]:
    """Return what of `chosen` goes to remotes; UsageError for what does not and is asked for by name."""
    pushed = []
    for entry, part in chosen:
        if entry.push:
            pushed.append((entry, part))
        elif entry.git and entry.path in targets:
            raise UsageError(f"`{entry.path}` is kept by Git, not by remotes", hint="`git push` shares it")
        elif entry.path in targets or part:
            hint = "take `push: false` out of its stage in `mlx.yaml` to share it"
            raise UsageError(f"`{entry.path}` is kept from remotes: `push: false`", hint=hint)
    return pushed


def _fetchable(chosen: Iterable[tuple[Tracked, str]], targets: Sequence[str]) -> tuple[tuple[Tracked, str], ...]:
    """Return what of `chosen` a remote can have; outputs that are kept from them only where they are asked for by name.

    What Git keeps comes with Git.
    """
    data = ((entry, part) for entry, part in chosen if not entry.git)
    return tuple((entry, part) for entry, part in data if entry.push or entry.path in targets or part)


class Bringing(Protocol):
    """Something that brings objects into a cache, verified: a remote, or what stands for one."""

    def bring(self, cache: Cache, digests: Collection[Digest], *, jobs: int, reporter: Reporter) -> Transferred: ...


def fetch_objects(
    cache: Cache,
    store: Bringing,
    chosen: Iterable[tuple[Tracked, str]],
    *,
    jobs: int = 0,
    reporter: Reporter = SILENT,
) -> Transferred:
    """Copy into `cache` everything that each tracked path (or the part of it that is meant) needs."""
    fetched = _Fetching(cache, store, jobs, reporter)
    blobs: dict[Digest, int] = {}
    frontier: list[Digest] = []
    for tracked, part in chosen:
        kind, digest, size = resolve_part(fetched, tracked, part)
        if kind is ObjectKind.TREE:
            frontier.append(digest)
        else:
            blobs[digest] = size
    while frontier:  # level by level: one batch a level, however many folders
        level = list(dict.fromkeys(frontier))
        fetched.bring(level)
        frontier = []
        for digest in level:
            below_trees, below_blobs = children(cache.read(digest), digest)
            frontier.extend(below_trees)
            blobs.update(below_blobs)
    fetched.bring(list(blobs))
    return fetched.done


class _Fetching:
    """A view of the cache that brings what it lacks from a remote when it is read."""

    def __init__(self, cache: Cache, store: Bringing, jobs: int, reporter: Reporter) -> None:
        self.done = Transferred(0, 0)
        self._cache = cache
        self._store = store
        self._jobs = jobs
        self._reporter = reporter

    def bring(self, digests: Sequence[Digest]) -> None:
        if digests:
            more = self._store.bring(self._cache, digests, jobs=self._jobs, reporter=self._reporter)
            self.done = Transferred(self.done.objects + more.objects, self.done.bytes + more.bytes)

    def read(self, digest: Digest) -> bytes:
        self.bring([digest])
        return self._cache.read(digest)


def _unfetchable(needed: Reach, label: str, error: AbsentObjects) -> MissingObject:
    paths = sorted({needed.owners[digest] for digest in error.digests if digest in needed.owners})
    named = ", ".join(f"`{path}`" for path in paths[:3]) + (f" and {len(paths) - 3:,} more" if len(paths) > 3 else "")
    count = len(error.digests)
    push = "mlx push --repair" if error.hint == REPAIR else "mlx push"  # the index names it: a mere push would not
    return MissingObject(
        f"{label} lacks {count:,} object{'' if count == 1 else 's'} of {named}, as does the cache",
        hint=f"`{push}` from a clone that has it, with this commit checked out; what could be fetched is in the cache",
    )


def _damaged(needed: Reach, error: DamagedObjects, hint: str = "") -> CorruptObject:
    """Return the store's error with the tracked path that needs what is damaged, and with `hint` about that path."""
    path = next((needed.owners[digest] for digest in error.digests if digest in needed.owners), None)
    return error if path is None else damaged_at(path, error, hint.format(path=shlex.quote(path)))


def _unreadable(needed: Reach, label: str, trees: set[Digest]) -> MissingObject:
    path = min(needed.owners[digest] for digest in trees)
    return MissingObject(
        f"the cache does not hold `{path}`, nor does {label}, so it cannot be pushed",
        hint=f"`mlx fetch {shlex.quote(path)}` from where it is, or `mlx add {shlex.quote(path)}` again",
    )


def _unpushable(needed: Reach, label: str, absent: set[Digest], stages: Mapping[str, str]) -> MissingObject:
    paths = sorted({needed.owners[digest] for digest in absent})
    named = ", ".join(f"`{path}`" for path in paths[:3])
    count = f"{len(absent):,} object{'' if len(absent) == 1 else 's'} of {named}"
    stage, them = stages.get(paths[0], ""), "it" if len(absent) == 1 else "them"
    return MissingObject(
        f"{count} {'is' if len(absent) == 1 else 'are'} neither in the cache nor on {label}",
        hint=f"`mlx run --force {shlex.quote(stage)}` makes {them} again"
        if stage
        else f"`mlx add {shlex.quote(paths[0])}` stores {them} again",
    )
