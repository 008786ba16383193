"""`mlx remote gc` and `mlx remote optimize`: what lies on a remote that nothing needs, and what lies there in crumbs.

What is needed is what this clone's records name, and every commit that its Git remotes name by now, as long as it is
here. Plans are pure functions of that and of what lies there; `remote_collection` carries them out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

from mlops_cli.errors import Inconclusive, MlxError, RecordError, RemoteError
from mlops_cli.files import translate_os_error
from mlops_cli.hashing import raw_digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.cache import Cache
from mlops_cli.store.pack_format import RECORD_SIZE, ROW_SIZE
from mlops_cli.store.pack_index import Place
from mlops_cli.store.remote import Remote
from mlops_cli.store.remote_collection import Change, Collector, find_deletable, find_litter, find_restored, find_spared
from mlops_cli.store.remote_contents import HeldFile, RemoteContents, Rows, needed_chunks, read_remote, written
from mlops_cli.store.remote_lease import leased
from mlops_cli.store.remote_sweep import finish_sweeps
from mlops_cli.workspace import repository
from mlops_cli.workspace.collect import Amount
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.project_remote import open_project_remote
from mlops_cli.workspace.record_marks import Source
from mlops_cli.workspace.remote_projects import forget_project, refuse_others
from mlops_cli.workspace.roots import Marker
from mlops_cli.workspace.run_records import read_run_record

_SPARSE = 0.5  # a pack is written anew when less of it than this is needed
_OVERHEAD = RECORD_SIZE + ROW_SIZE  # bytes that an object takes in a pack besides its own
# What a clone can be expected to fetch; forges name every proposal that there ever was besides.
_DEMANDED = ("refs/heads/", "refs/tags/", "refs/mlx/")
SMALL = 16 << 20  # bytes; packs below this are joined
OWNER_SINGLE = "single"


@dataclass(frozen=True, slots=True)
class RemotePlan:
    """What is to become of what an index names.

    `kept` is needed, `young` is not but younger than the grace age, `staying` shares a file with more that is needed,
    and only leaves the index; `going` is condemned. `change` says it file by file.
    """

    kept: Amount
    young: Amount
    staying: Amount
    going: Amount
    change: Change


@dataclass(frozen=True, slots=True)
class RemoteCollected:
    """What a collection of a remote found, and did or would do.

    `restored` was condemned and is needed again, `deleted` are files that are gone for good, `litter` is how many
    files went that are no objects, `false` how many files its index names that are gone or cut short.
    """

    remote: str
    url: str
    plan: RemotePlan
    records: Mapping[Source, int]
    projects: tuple[str, ...]
    restored: int
    deleted: Amount
    litter: int
    false: int

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        leaving = self.plan.going.objects or self.plan.staying.objects
        return not (leaving or self.restored or self.deleted.objects or self.litter or self.false)


@dataclass(frozen=True, slots=True)
class Optimized:
    """What an optimization joined, or would join: so many small packs, with their bytes, and segments of the index."""

    remote: str
    url: str
    packs: Amount
    segments: int


def plan_collection(files: Collection[HeldFile], needed: Collection[bytes], before: float) -> RemotePlan:
    """Return what is to be done so that all of `needed` (raw digests) stays in the index, and all else goes from it.

    What was written from `before` on (s) stays. Of an object in several files, one counts as the one that has it: a
    young one, else one with much that is needed.
    """
    ranked = sorted(files, key=lambda held: (held.time < before, -_live(held, needed), held.key))
    amounts = dict.fromkeys(("kept", "young", "staying", "going"), Amount())
    dead, reduced = set(), set()
    anew: dict[str, Rows] = {}
    lacking = set(needed)
    doubles: set[bytes] = set()  # needed, in a file that goes, and in one that comes before it
    for held in ranked:
        mine = tuple(row for row in held.rows if row[0] in lacking)
        own = {raw for raw, _ in mine}
        lacking -= own
        live, rest = _amount(mine), _amount(held.rows) - _amount(mine)
        amounts["kept"] += live
        if held.time >= before:
            amounts["young"] += rest
            continue
        if not mine:
            dead.add(held.key)
            amounts["going"] += rest
        elif held.key.startswith("packs/") and live.size + live.objects * _OVERHEAD < _SPARSE * held.size:
            anew[held.key] = mine
            amounts["going"] += rest
        else:
            reduced.add(held.key)
            amounts["staying"] += rest
            continue
        doubles.update(raw for raw, _ in held.rows if raw in needed and raw not in own)
    twins: dict[bytes, Place] = {}
    for held in ranked if doubles else ():
        for raw, place in held.rows:
            if raw in doubles:
                doubles.remove(raw)
                if held.key not in anew:
                    twins[raw] = place
    return RemotePlan(**amounts, change=Change(frozenset(dead), anew, frozenset(reduced), twins))


def plan_optimization(files: Collection[HeldFile]) -> Change:
    """Return which packs are to be joined: those that are small, when there are several."""
    small = [held for held in files if held.key.startswith("packs/") and held.size < SMALL]
    return Change(anew={held.key: held.rows for held in sorted(small)}) if len(small) > 1 else Change()


def _live(held: HeldFile, needed: Collection[bytes]) -> int:
    return sum(place.stored for raw, place in held.rows if raw in needed)


def _amount(rows: Rows) -> Amount:
    return Amount(len(rows), sum(place.stored for _, place in rows))


def collect_remote(
    project: Project,
    name: str | None,
    *,
    now: float,
    grace: float | None = None,
    dry_run: bool = True,
    allow_absent: bool = False,
    forgotten: str | None = None,
    reporter: Reporter = SILENT,
) -> RemoteCollected:
    """Condemn on a remote what nothing needs and is older than `grace` (s; `gc.grace` when None), by its own clock.

    What was condemned that long ago is deleted; what is needed again comes back. A dry run changes nothing there, and
    goes by `now` (s), this machine's clock, as it cannot ask for the other one without writing. Nothing has changed
    after Inconclusive, RecordError or CorruptObject: somebody may need what is not known here.
    """
    name, store = open_project_remote(project, name, reporter)
    age = project.config.gc_grace if grace is None else grace
    _refuse_unfit(store)
    projects = refuse_others(project, store.bucket, forgotten)
    with project.guard.held():
        marker = Marker(project.cache, project.git, reporter=reporter)

        def mark() -> set[bytes]:
            _mark(project, name, store, marker, allow_absent=allow_absent, reporter=reporter)
            return marker.needed.objects

        if dry_run:
            look = _look(store, mark, now, age, reporter)
            done = Done(look, look.deletable)
        else:
            done = collect_store(store, project.cache, mark, age, reporter)
    return _told(store, marker, projects, done)


class Look(NamedTuple):
    """What lies on a remote, what of it is needed, what is to become of it, and which files are to be deleted.

    `litter` are files that are no objects: what commands that were killed left, and run records without their outputs.
    """

    contents: RemoteContents
    needed: set[bytes]
    plan: RemotePlan
    deletable: set[str]
    litter: set[str]


class Done(NamedTuple):
    """What a collection found, and which files of objects it deleted."""

    look: Look
    deleted: Collection[str]


def collect_store(
    store: Remote, cache: Cache, mark: Callable[[], set[bytes]], age: float, reporter: Reporter = SILENT
) -> Done:
    """Collect what is older than `age` (s) and none of the objects (raw digests) that `mark` finds to be needed.

    `cache` gives a place for temporary files.
    """
    with leased(store.bucket, f"mlx remote gc {store.name}") as lease, cache.scratch() as scratch:
        finish_sweeps(store.bucket, store.index)
        look = _look(store, mark, lease.now, age, reporter)
        collector = Collector(store.bucket, store.index, store.trash, lease, reporter)
        collector.condemn(look.contents, look.plan.change, look.needed, scratch)
        deleted = collector.delete(look.contents, look.deletable, lease.now - age)
        if look.litter:
            collector.tidy(look.litter)
        return Done(look, deleted)


def forget_repository(project: Project, name: str | None, note: str, *, dry_run: bool = True) -> None:
    """Collect on a remote without regard to the repository whose note is called `note`; UsageError when none is."""
    _, store = open_project_remote(project, name)
    _refuse_unfit(store)
    forget_project(project, store.bucket, note, dry_run=dry_run)


def optimize_remote(
    project: Project, name: str | None, *, dry_run: bool = True, reporter: Reporter = SILENT
) -> Optimized:
    """Join the small packs and the index segments of a remote; the old packs are condemned, not deleted."""
    name, store = open_project_remote(project, name, reporter)
    _refuse_unfit(store)
    if dry_run:
        return _joined(store, read_remote(store.bucket, store.index, store.trash))
    with project.guard.held():
        return _joined(store, optimize_store(store, project.cache, reporter))


def optimize_store(store: Remote, cache: Cache, reporter: Reporter = SILENT) -> RemoteContents:
    """Join what is small; return what lay there before."""
    with leased(store.bucket, f"mlx remote optimize {store.name}") as lease, cache.scratch() as scratch:
        contents = read_remote(store.bucket, store.index, store.trash)
        collector = Collector(store.bucket, store.index, store.trash, lease, reporter)
        collector.condemn(contents, plan_optimization(contents.files), (), scratch, merge=True)
        return contents


def _joined(store: Remote, contents: RemoteContents) -> Optimized:
    keys = plan_optimization(contents.files).anew
    segments = len(contents.segments) if len(contents.segments) > 1 or keys else 0
    size = sum(contents.listed[key].size for key in keys)
    return Optimized(store.name, store.url, Amount(len(keys), size), segments)


def _refuse_unfit(store: Remote) -> None:
    store.refuse_without_index()
    if not (store.bucket.lists and store.bucket.writes):
        raise RemoteError(
            f"{store.label} (`{store.url}`) is only read from",
            hint="collect it by a URL that can be written to",
        )


def _look(store: Remote, mark: Callable[[], set[bytes]], now: float, age: float, reporter: Reporter) -> Look:
    """Find out what is needed, then what lies there; what comes in between is young."""
    bucket, before = store.bucket, now - age
    needed = mark()
    reporter.start("looking through the remote", None, "files")
    contents = read_remote(bucket, store.index, store.trash)
    needed = needed | needed_chunks(bucket, contents, needed)
    if contents.gone or contents.short:
        reporter.note(
            f"the index of {store.label} names files that are gone ({len(contents.gone):,}) or cut short "
            f"({len(contents.short):,}): `mlx push --repair` from a clone that has the data"
        )
    plan = plan_collection(contents.files, needed, before)
    restored = find_restored(contents, needed)
    plan = replace(plan, change=plan.change._replace(restored=restored))
    deletable = find_deletable(contents, before, restored)
    spared = find_spared(bucket, contents, deletable, needed)
    if spared:
        reporter.note(
            f"some packs that no index of {store.label} names have what is needed, and stay ({len(spared):,}): "
            "`mlx push --repair` from a clone that has the data"
        )
    litter = {*find_litter(bucket, now), *_find_useless_runs(store, needed, before)}
    return Look(contents, needed, plan, deletable - spared, litter)


def _find_useless_runs(store: Remote, needed: Collection[bytes], before: float) -> Iterator[str]:
    """Yield the run records written before `before` (s) of which some output is not needed any more, and so goes."""
    for stored in store.bucket.list("runs"):
        name = stored.key.removeprefix("runs/").removesuffix(".yaml")
        if written(stored) >= before or not (name.isalnum() and name.isascii()):
            continue
        with suppress(RecordError):  # one of another version, say
            lock = read_run_record(store.read_run(name) or b"", stored.key)
            if any(raw_digest(out.digest) not in needed for out in lock.outs):
                yield stored.key


def _told(store: Remote, marker: Marker, projects: tuple[str, ...], done: Done) -> RemoteCollected:
    contents, plan = done.look.contents, done.look.plan
    deleted = Amount(len(done.deleted), sum(contents.listed[key].size for key in done.deleted))
    records = dict(marker.needed.records)
    restored, false = len(plan.change.restored), len(contents.gone) + len(contents.short)
    return RemoteCollected(
        store.name, store.url, plan, records, projects, restored, deleted, len(done.look.litter), false
    )


def _mark(
    project: Project, name: str, store: Remote, marker: Marker, *, allow_absent: bool, reporter: Reporter
) -> None:
    """Let `marker` find all that is needed; what trees list that are only on the remote, or on another one, too."""
    reporter.start("looking for what is needed", None, "files")
    with _readable():
        marker.look()
        if project.config.remotes[name].owner != OWNER_SINGLE:
            _look_upstream(project, name, marker)
        _bring_listings(project, store, marker)
        for other in project.config.remotes.keys() - {name} if marker.absent(promised=True) else ():
            with suppress(MlxError):  # one that cannot be reached: what is absent still is
                _bring_listings(project, open_project_remote(project, other, reporter)[1], marker)
            _bring_listings(project, store, marker)
    lost = marker.absent(promised=True)
    if lost and not allow_absent:
        digest, owner = min(lost.items())
        more = f" (and {len(lost) - 1:,} more)" if len(lost) > 1 else ""
        raise Inconclusive(
            f"`{owner}` needs a folder whose listing `{digest[:19]}`{more} is neither here nor on {store.label}: "
            "what it lists is unknown",
            hint="`mlx fetch --all-branches --all-tags` when another remote has it, "
            "`mlx push --all-branches --all-tags` in a clone that has it; `--allow-absent` goes on without",
        )
    if lost:
        reporter.note(f"listings of folders that are nowhere do not count ({len(lost):,})")


def _bring_listings(project: Project, store: Remote, marker: Marker) -> None:
    """Bring the listings that are absent, and those that they name, as far as `store` has them."""
    tried: set[str] = set()
    while wanted := marker.absent().keys() - tried:
        tried |= wanted
        there = store.find_small(wanted)
        if there:
            store.bring(project.cache, there, jobs=project.config.core_jobs)
        marker.look_below()


def _look_upstream(project: Project, name: str, marker: Marker) -> None:
    """Let `marker` see what the Git remotes name by now; Inconclusive when some of it is not here."""
    upstream = repository.list_upstream(project.git.common_dir, project.git.top)
    if not upstream:
        raise Inconclusive(
            "this repository has no Git remote that could tell which commits others have",
            hint=f"`mlx config set remotes.{name}.owner single`, if nobody else uses that remote "
            "and this clone has all branches",
        )
    names = [(remote, ref, commit) for remote, refs in upstream.items() for ref, commit in refs.items()]
    named = repository.find_named(project.git.git_dir, (commit for _, _, commit in names))
    demanded = {commit for _, ref, commit in names if ref == "HEAD" or ref.startswith(_DEMANDED)}
    absent = named.absent & demanded
    if absent:
        some = ", ".join(f"`{remote}`" for remote, refs in upstream.items() if not absent.isdisjoint(refs.values()))
        one = len(absent) == 1
        what = "1 commit or tag that is" if one else f"{len(absent):,} commits or tags that are"
        raise Inconclusive(
            f"{some} has {what} not here: what {'it needs' if one else 'they need'} is unknown",
            hint="`git fetch --all --tags`, then again",
        )
    marker.look_at(named.commits, named.trees)


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise translate_os_error(error, f"read `{error.filename}`, which may tell what is needed") from error
