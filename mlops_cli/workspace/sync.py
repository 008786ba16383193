"""`mlx push`, `fetch` and `pull`: records → wanted digests → transfer.

What is meant is what the workspace's records name now, narrowed to the targets. Blobs go up before the trees that name
them, so that a tree on a remote is a promise about what lies beneath; coming down, trees go first, because they say
which blobs are wanted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from mlops_cli.errors import UsageError
from mlops_cli.hashing import Digest, fingerprint
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.records.pointers import ObjectKind
from mlops_cli.store.buckets import open_bucket
from mlops_cli.store.cache import Cache
from mlops_cli.store.objects import AbsentObjects, DamagedObjects
from mlops_cli.store.parcels import Wanted
from mlops_cli.store.remote import Remote, Transferred
from mlops_cli.store.remote_checkup import Fault
from mlops_cli.store.rounds import rounds_of
from mlops_cli.store.url_cache import UrlCache
from mlops_cli.workspace.cache_repair import forget_lost
from mlops_cli.workspace.destinations import Destinations
from mlops_cli.workspace.pinned import is_pinned, leave_pinned
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.reach import Reach, children, measure_unread, reach, resolve_part, trees_above
from mlops_cli.workspace.relay import Bringing, relay
from mlops_cli.workspace.remote_projects import announce
from mlops_cli.workspace.remotes import choose_remote, default_remote, is_cache
from mlops_cli.workspace.shortfalls import (
    damaged_on_the_way,
    refuse_gone,
    unfetchable,
    unpushable,
    unreadable,
    untrue,
)
from mlops_cli.workspace.snapshot import Tracked
from mlops_cli.workspace.transfers import PLAINLY, Fetching, Moved, SyncResult
from mlops_cli.workspace.versions import THE_WORKSPACE, Versions, select_rules, select_versions


class Trust(Enum):
    """What a push believes of what is on a remote already: its index, the names and sizes of its files, or nothing."""

    INDEX = "index"
    FILES = "files"
    NOTHING = "nothing"


def open_project_remote(project: Project, name: str | None, reporter: Reporter = SILENT) -> tuple[str, Remote]:
    """Return the remote `name`, or the default one, with its name; UsageError when there is none of that name.

    Nothing is contacted before the first verb; the reporter hears when it does not answer for a while. RemoteError when
    the URL's protocol is unknown or its package is not installed.
    """
    chosen = choose_remote(project, name)
    url = project.config.remotes[chosen].url
    bucket = open_bucket(chosen, url, project.root, durability=project.cache.durability)
    bucket.traffic.listener = reporter.note
    return chosen, Remote(bucket, str(project.local / "remotes" / fingerprint(url)))


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
    """Upload what the records of `targets` name, in each of `versions`, and the remotes lack.

    To which remote each tracked path goes, `Destinations` says; with `remote` nothing goes to another. What a remote
    lacks, its index tells; `trust` says whether that is believed.
    UsageError, before anything is sent, for what must not go where it would; MissingObject when the cache does not hold
    it either; CorruptObject when the cache's bytes are damaged; RemoteError.
    """
    chosen = _pushable(select_versions(project, targets, versions), targets)
    destinations = Destinations(project, select_rules(project, versions))
    division = destinations.divide(chosen, remote, targets, sending=True)
    moved = []
    plans = []
    for name, share in division.shares.items():
        if trust is Trust.NOTHING and isinstance(project.cache, UrlCache) and is_cache(project, name):
            moved.append(forget_lost(project, project.cache, share, dry_run=dry_run, jobs=jobs, reporter=reporter))
            continue
        named = bool(targets)
        plan = _plan_push(project, name, share, trust, named=named, dry_run=dry_run, jobs=jobs, reporter=reporter)
        destinations.refuse_split(project.cache, name, plan.share, set(plan.ordered))
        plans.append(plan)
    for plan in plans:
        if not dry_run and plan.ordered:
            _send(project, plan, jobs or project.config.core_jobs, reporter)
        moved.append(plan.moved())
    return SyncResult(tuple(moved), division.left)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to go to one remote: the objects of `ordered`, each after what it names."""

    name: str
    store: Remote
    share: Sequence[tuple[Tracked, str]]
    needed: Reach
    ordered: Sequence[Digest]
    faults: Sequence[Fault]

    @property
    def size(self) -> int:
        """The bytes of the objects."""
        return sum(self.needed.sizes[digest] for digest in self.ordered)

    def moved(self) -> Moved:
        """Return what this came to, or in a dry run would come to."""
        traffic = self.store.bucket.traffic
        return Moved(
            self.name,
            self.store.url,
            _paths(self.share),
            len(self.ordered),
            self.size,
            traffic.requests,
            traffic.sent + traffic.received,
            len(self.faults),
            tuple(sorted({self.needed.owners[digest] for digest in self.needed.unread})),
        )


def _plan_push(
    project: Project,
    name: str,
    share: Sequence[tuple[Tracked, str]],
    trust: Trust,
    *,
    named: bool,
    dry_run: bool,
    jobs: int,
    reporter: Reporter,
) -> _Plan:
    _, store = open_project_remote(project, name, reporter)
    if not named:
        share = leave_pinned(project.cache, store, share, reporter)
    needed = reach(Sendable(project.cache), share)
    imports = {tracked.path for tracked, _ in share if is_pinned(tracked)}
    faults = _distrust(project.cache, store, needed, trust, dry_run=dry_run, jobs=jobs, reporter=reporter)
    missing = store.missing({*needed.sizes, *needed.unread})
    if missing & needed.unread:
        refuse_gone(store)
        raise unreadable(needed, store.label, missing & needed.unread, imports)
    # A tree that is on the remote already came after everything beneath it.
    return _Plan(name, store, share, needed, [digest for digest in needed.sizes if digest in missing], faults)


def _send(project: Project, plan: _Plan, jobs: int, reporter: Reporter) -> None:
    needed, store = plan.needed, plan.store
    absent = Sendable(project.cache).missing(plan.ordered)
    if absent:
        refuse_gone(store)
        imports = {tracked.path for tracked, _ in plan.share if is_pinned(tracked)}
        stages = {tracked.path: tracked.stage for tracked, _ in plan.share}
        raise unpushable(needed, store.label, absent, stages, imports)
    reporter.start("pushing", plan.size, "bytes")
    missing = set(plan.ordered)
    try:
        with project.guard.held():
            blobs, *levels = ([digest for digest in step if digest in missing] for step in needed.steps)
            announce(project, store.bucket, store.url)
            wanted = Wanted(blobs, [digest for level in levels for digest in level], needed.sizes)
            _send_in_rounds(project.cache, store, wanted, jobs, reporter)
    except DamagedObjects as error:
        hint = "`mlx add {path}` or `mlx run` makes a good one again"
        raise damaged_on_the_way(needed, error, hint) from error


class Sendable:
    """What can be sent: all that a cache has, be it only here, from before it was behind a URL."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def missing(self, digests: Collection[Digest]) -> set[Digest]:
        lacking = self._cache.missing(digests)
        return lacking if self._cache.url is None else lacking & self._cache.window.missing(lacking)

    def read(self, digest: Digest) -> bytes:
        return self._cache.read(digest)


def _send_in_rounds(cache: Cache, store: Remote, wanted: Wanted, jobs: int, reporter: Reporter) -> None:
    """Send `wanted`: first what is on another machine, a round at a time, then what is on this one, all trees last."""
    cache.bring_trees(wanted.trees)
    far = set() if cache.url is None else cache.window.missing(wanted.blobs)
    passing = [digest for digest in wanted.blobs if digest in far]
    for share in rounds_of(passing, wanted.sizes.__getitem__, cache.most_at_once) if passing else ():
        with cache.near(dict.fromkeys(share, 1), jobs) as near:
            store.send(near, Wanted(share, [], wanted.sizes), jobs=jobs, reporter=reporter)
    here = [digest for digest in wanted.blobs if digest not in far]
    store.send(cache.window, Wanted(here, wanted.trees, wanted.sizes), jobs=jobs, reporter=reporter)


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
    reporter.start("verifying", None, "bytes")
    faults = store.check({*needed.sizes, *needed.unread}, read=repairing, jobs=jobs, reporter=reporter)
    if faults and not repairing:
        raise untrue(store, needed, faults)
    if faults:
        store.deny(trees_above(cache, needed, {fault.digest for fault in faults}))
        if not dry_run:
            store.forget_faults()
    return faults


def find_absent(cache: Cache, store: Remote, chosen: Iterable[tuple[Tracked, str]]) -> set[Digest]:
    """Return the objects that `chosen` needs and neither store has; what lies below a tree there counts as there.

    Nothing is downloaded. RemoteError when `store` is not there.
    """
    needed = reach(cache, chosen)
    absent = store.missing(cache.missing(needed.sizes) | needed.unread)
    if absent:
        refuse_gone(store)
    return absent


def fetch(project: Project, targets: Sequence[str] = (), how: Fetching = PLAINLY) -> SyncResult:
    """Bring what the records of `targets` name, in each of the versions, and the cache lacks from the remotes.

    From which remote each tracked path comes, `Destinations` says, unless `how` names one.
    MissingObject when that does not hold it either. A dry run downloads nothing: below a folder whose tree is not
    here it cannot count objects, and `size` is None; `unlisted` tells the files there.
    """
    chosen = fetchable(select_versions(project, targets, how.versions), targets)
    needed = reach(project.cache, chosen)
    if not needed.unread and not project.cache.missing(needed.sizes):
        name = choose_remote(project, how.remote) if how.remote or default_remote(project) else ""
        url = project.config.remotes[name].url if name else ""
        return SyncResult((Moved(name, url, _paths(chosen)),))
    division = Destinations(project).divide(chosen, how.remote, targets, sending=False)
    moved = [fetch_share(project, name, share, how) for name, share in division.shares.items()]
    return SyncResult(tuple(moved), division.left)


def fetch_share(project: Project, name: str, share: Sequence[tuple[Tracked, str]], how: Fetching) -> Moved:
    """Bring what the cache lacks of a share of the tracked paths from the remote `name`; it fails as `fetch` does."""
    needed = reach(project.cache, share)
    lacking = project.cache.missing(needed.sizes)
    url = project.config.remotes[name].url
    if not lacking and not needed.unread:
        return Moved(name, url, _paths(share))
    _, store = open_project_remote(project, name, how.reporter)
    if how.dry_run:
        known = sum(needed.sizes[digest] for digest in lacking)
        unlisted = measure_unread(project.cache, share, needed)
        size = None if needed.unread else known
        objects = len(lacking) + len(needed.unread)
        return Moved(name, url, _paths(share), objects, size, unlisted=unlisted, known=known)
    try:
        with project.guard.held():
            jobs = how.jobs or project.config.core_jobs
            done = fetch_objects(project.cache, store, share, jobs=jobs, reporter=how.reporter)
    except AbsentObjects as error:
        refuse_gone(store)
        raise unfetchable(
            reach(project.cache.window, share), store.label, error, is_cache=is_cache(project, name)
        ) from error
    except DamagedObjects as error:
        raise damaged_on_the_way(reach(project.cache.window, share), error) from error
    traffic = store.bucket.traffic
    moved = traffic.sent + traffic.received
    return Moved(name, url, _paths(share), done.objects, done.bytes, traffic.requests, moved)


def _paths(chosen: Iterable[tuple[Tracked, str]]) -> tuple[str, ...]:
    return tuple(sorted({entry.path for entry, _ in chosen}))


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


def fetchable(chosen: Iterable[tuple[Tracked, str]], targets: Sequence[str]) -> tuple[tuple[Tracked, str], ...]:
    """Return what of `chosen` a remote can have; outputs that are kept from them only where they are asked for by name.

    What Git keeps comes with Git.
    """
    data = ((entry, part) for entry, part in chosen if not entry.git)
    return tuple((entry, part) for entry, part in data if entry.push or entry.path in targets or part)


def fetch_objects(
    cache: Cache,
    store: Bringing,
    chosen: Iterable[tuple[Tracked, str]],
    *,
    jobs: int = 0,
    reporter: Reporter = SILENT,
    label: str = "fetching",
) -> Transferred:
    """Copy into `cache` everything that each tracked path (or the part of it that is meant) needs.

    The listings come first, by themselves: what they name says how many bytes the rest is, which is told then.
    """
    reporter.start(f"{label} listings", None, "bytes")
    fetched = _Fetching(cache.window, store, jobs, reporter)
    levels: list[list[Digest]] = []
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
        levels.append(level)
        frontier = []
        for digest in level:
            below_trees, below_blobs = children(cache.window.read(digest), digest)
            frontier.extend(below_trees)
            blobs.update(below_blobs)
    if isinstance(cache, UrlCache):
        return fetched.done.plus(relay(cache, store, blobs, levels, label=label, jobs=jobs, reporter=reporter))
    lacking = cache.missing(blobs)
    reporter.start(label, sum(blobs[digest] for digest in lacking), "bytes")
    fetched.bring([digest for digest in blobs if digest in lacking])
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
            self.done = self.done.plus(
                self._store.bring(self._cache, digests, jobs=self._jobs, reporter=self._reporter)
            )

    def read(self, digest: Digest) -> bytes:
        self.bring([digest])
        return self._cache.read(digest)
