"""`mlx push`: records → wanted digests → what their remotes lack.

Blobs go up before the trees that name them, so that a tree on a remote is a promise about what lies beneath.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlops_cli.errors import CorruptObject, UsageError
from mlops_cli.hashing import Digest
from mlops_cli.progress import Reporter
from mlops_cli.store.cache import Cache
from mlops_cli.store.chunking import CHUNKED_FROM
from mlops_cli.store.objects import DamagedObjects
from mlops_cli.store.parcels import Wanted
from mlops_cli.store.remote import Remote
from mlops_cli.store.remote_checkup import Fault
from mlops_cli.store.rounds import rounds_of
from mlops_cli.store.url_cache import UrlCache
from mlops_cli.workspace.cache_repair import forget_lost
from mlops_cli.workspace.destinations import Destinations
from mlops_cli.workspace.pinned import is_pinned, leave_pinned
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.project_remote import open_project_remote
from mlops_cli.workspace.reach import Reach, reach, trees_above
from mlops_cli.workspace.remote_projects import announce
from mlops_cli.workspace.remotes import is_cache
from mlops_cli.workspace.run_sharing import RunsToShare, SharedRun, find_sendable, send_runs
from mlops_cli.workspace.shortfalls import damaged_on_the_way, refuse_gone, unpushable, unreadable, untrue
from mlops_cli.workspace.snapshot import Tracked
from mlops_cli.workspace.transfers import Moved, Pushing, SyncResult, Trust, paths_of
from mlops_cli.workspace.versions import select_rules, select_versions

PLAINLY = Pushing()


def push(project: Project, targets: Sequence[str] = (), how: Pushing = PLAINLY) -> SyncResult:
    """Upload what the records of `targets` name, in each of the versions, and the remotes lack.

    To which remote each tracked path goes, `Destinations` says; where `how` names one, nothing goes to another.
    UsageError, before anything is sent, for what must not go where it would; MissingObject when the cache does not hold
    it either; CorruptObject when the cache's bytes are damaged; RemoteError.
    """
    gathered = RunsToShare(project, how.runs)
    chosen = _pushable(select_versions(project, targets, how.versions, gathered.visit), targets)
    destinations = Destinations(project, select_rules(project, how.versions))
    division = destinations.divide(chosen, how.remote, targets, sending=True)
    runs = gathered.divide(destinations, how.remote, chosen, named=bool(targets))
    moved = []
    plans = []
    for name, share in division.shares.items():
        if how.trust is Trust.NOTHING and isinstance(project.cache, UrlCache) and is_cache(project, name):
            options: dict[str, Any] = {"dry_run": how.dry_run, "jobs": how.jobs, "reporter": how.reporter}
            moved.append(forget_lost(project, project.cache, share, **options))
            continue
        plan = _plan_push(project, name, share, runs.get(name, ()), destinations, how, named=bool(targets))
        destinations.refuse_split(project.cache, name, plan.share, set(plan.ordered))
        plans.append(plan)
    for plan in plans:
        if not how.dry_run and plan.ordered:
            _send(project, plan, how.jobs or project.config.core_jobs, how.reporter)
            if how.trust is Trust.NOTHING:
                _mend_parts(project, plan, how)
        moved.append(_tell_runs(project, plan, how))
    return SyncResult(tuple(moved), division.left)


def push_chosen(project: Project, name: str, chosen: Sequence[tuple[Tracked, str]], how: Pushing = PLAINLY) -> Moved:
    """Upload what of `chosen` the remote `name` lacks, no record naming it; it fails as `push` does."""
    destinations = Destinations(project)
    destinations.divide(chosen, name, [tracked.path for tracked, _ in chosen], sending=True)
    plan = _plan_push(project, name, chosen, (), destinations, how, named=True)
    destinations.refuse_split(project.cache, name, plan.share, set(plan.ordered))
    if plan.ordered and not how.dry_run:
        _send(project, plan, how.jobs or project.config.core_jobs, how.reporter)
    return plan.moved(0)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to go to one remote: the objects of `ordered`, each after what it names, then the records of `runs`."""

    name: str
    store: Remote
    share: Sequence[tuple[Tracked, str]]
    needed: Reach
    ordered: Sequence[Digest]
    faults: Sequence[Fault]
    runs: Sequence[SharedRun]

    @property
    def size(self) -> int:
        """The bytes of the objects."""
        return sum(self.needed.sizes[digest] for digest in self.ordered)

    def moved(self, runs: int) -> Moved:
        """Return what this came to, or in a dry run would come to, with so many run records."""
        traffic = self.store.bucket.traffic
        return Moved(
            self.name,
            self.store.url,
            paths_of(self.share),
            len(self.ordered),
            self.size,
            traffic.requests,
            traffic.sent + traffic.received,
            len(self.faults),
            tuple(sorted({self.needed.owners[digest] for digest in self.needed.unread})),
            runs=runs,
        )


def _plan_push(
    project: Project,
    name: str,
    share: Sequence[tuple[Tracked, str]],
    runs: Iterable[SharedRun],
    destinations: Destinations,
    how: Pushing,
    *,
    named: bool,
) -> _Plan:
    _, store = open_project_remote(project, name, how.reporter)
    if not named:
        share = leave_pinned(project.cache, store, share, how.reporter)
    new = find_sendable(project, destinations, store, runs, anew=how.trust is Trust.NOTHING)
    needed = reach(Sendable(project.cache), [*share, *(pair for run in new for pair in run.pairs)])
    imports = {tracked.path for tracked, _ in share if is_pinned(tracked)}
    faults = _distrust(project.cache, store, needed, how)
    missing = store.missing({*needed.sizes, *needed.unread})
    if missing & needed.unread:
        refuse_gone(store)
        raise unreadable(needed, store.label, missing & needed.unread, imports)
    # A tree that is on the remote already came after everything beneath it.
    return _Plan(name, store, share, needed, [digest for digest in needed.sizes if digest in missing], faults, new)


def _send(project: Project, plan: _Plan, jobs: int, reporter: Reporter) -> None:
    needed, store = plan.needed, plan.store
    absent = Sendable(project.cache).missing(plan.ordered)
    if absent:
        refuse_gone(store)
        imports = {tracked.path for tracked, _ in plan.share if is_pinned(tracked)}
        stages = {tracked.path: tracked.stage for tracked, _ in plan.share}
        raise unpushable(needed, store.label, absent, stages, imports, plan.ordered)
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


def _tell_runs(project: Project, plan: _Plan, how: Pushing) -> Moved:
    """Tell the remote of the runs whose outputs it has now; returns what all of the plan came to."""
    if not plan.runs or how.dry_run:
        return plan.moved(len(plan.runs))
    announce(project, plan.store.bucket, plan.store.url)
    sent = send_runs(plan.store, plan.runs, how.jobs, how.reporter)
    return plan.moved(sent)


def _mend_parts(project: Project, plan: _Plan, how: Pushing) -> None:
    """Send again what is damaged of large files that were sent: chunks that were there already were believed."""
    sizes = plan.needed.sizes
    sent = [digest for digest in plan.ordered if sizes[digest] >= CHUNKED_FROM]
    if not sent:
        return
    how.reporter.start("verifying", sum(sizes[digest] for digest in sent), "bytes")
    faults = plan.store.check(sent, read=True, jobs=how.jobs, reporter=how.reporter)
    if faults:
        plan.store.forget_faults()
        again = replace(plan, ordered=[fault.digest for fault in faults])
        _send(project, again, how.jobs or project.config.core_jobs, how.reporter)


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


def _distrust(cache: Cache, store: Remote, needed: Reach, how: Pushing) -> list[Fault]:
    """Return what of `needed` the remote has not as its index says; from now on that is missing there.

    So are the trees above it: who has only them takes them for a promise about what is beneath.

    CorruptObject, or MissingObject when no byte is wrong, unless it is to be repaired.
    """
    if how.trust is Trust.INDEX:
        return []
    repairing = how.trust is Trust.NOTHING
    if not repairing and (unsound := store.unsound()):
        raise CorruptObject(
            f"the index of {store.label} is damaged (`{unsound[0]}`)",
            hint="the same `mlx push` with `--repair` writes it anew",
        )
    if repairing and not how.dry_run:
        for name in store.mend_index():
            how.reporter.note(
                f"`{name}` of {store.label} was damaged: who else pushed there should `mlx push --repair` too"
            )
        for name in store.mended:
            how.reporter.note(f"`{name}` of {store.label} was damaged, and is written anew")
    how.reporter.start("verifying", None, "bytes")
    faults = store.check({*needed.sizes, *needed.unread}, read=repairing, jobs=how.jobs, reporter=how.reporter)
    if faults and not repairing:
        raise untrue(store, needed, faults)
    if faults:
        store.deny(trees_above(cache, needed, {fault.digest for fault in faults}))
        if not how.dry_run:
            store.forget_faults()
    return faults


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
