"""`mlx gc`: put away what no project needs, in three steps.

Look: which objects must stay (`roots`) and what is there. Plan: a pure function of the two. Do: with the guard held
alone, look again, plan again, bring back what is needed and lies in the trash, and move what is to go there, where it
stays for the grace age. Whatever kills this in between, nothing that is needed has gone, and doing it again does the
rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mlops_cli.files import translate_os_error
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.contents import Contents, Packed, read_contents
from mlops_cli.store.guard import alone
from mlops_cli.store.partial import remove_leftovers
from mlops_cli.store.recipes import Recipes
from mlops_cli.store.trash import Thrown, Trash
from mlops_cli.workspace import clients
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.record_marks import Source
from mlops_cli.workspace.roots import Marker

_SPARSE = 0.5  # a pack is written anew when less of it than this is needed


@dataclass(frozen=True, slots=True)
class Amount:
    """So many objects, and the bytes they take in the cache."""

    objects: int = 0
    size: int = 0

    def __add__(self, other: Amount) -> Amount:
        """Return both together."""
        return Amount(self.objects + other.objects, self.size + other.size)

    def __sub__(self, other: Amount) -> Amount:
        """Return this without what is in `other`."""
        return Amount(self.objects - other.objects, self.size - other.size)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a collection would do.

    `kept` is needed, `young` is not but younger than the grace age, `staying` shares a pack with more that is needed;
    `going` goes: `loose` objects and packs in which nothing is needed (`dead`), and what is left out of those that are
    written anew (`sparse`). `unreadable` packs are left alone. `runs` are the run records that go.
    """

    kept: Amount = Amount()
    young: Amount = Amount()
    staying: Amount = Amount()
    going: Amount = Amount()
    loose: tuple[bytes, ...] = ()
    dead: tuple[str, ...] = ()
    sparse: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing is to go."""
        return not (self.loose or self.dead or self.sparse or self.runs)


@dataclass(frozen=True, slots=True)
class Collected:
    """A plan, what it was made from, and files in the trash: all that is `thrown`, what of it goes and what comes back.

    `expired` is deleted, `returning` is needed after all.
    """

    plan: Plan
    projects: tuple[str, ...]
    records: dict[Source, int]
    expired: Amount
    thrown: Amount
    returning: Amount

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return self.plan.empty and not self.expired.objects and not self.returning.objects


@dataclass(frozen=True, slots=True)
class Emptied:
    """What was in the trash: files that were deleted for good, and those that came back, for they are needed."""

    gone: Amount
    returning: Amount


def plan_collection(contents: Contents, needed: Collection[bytes], runs: Collection[str], before: float) -> Plan:
    """Return what is to be done so that all of `needed` stays, and all else that is older than `before` (s) goes.

    `needed` are 32-byte digests, `runs` the run records that stay.
    """
    amounts = dict.fromkeys(("kept", "young", "staying", "going"), Amount())
    loose, dead, sparse, unreadable = [], [], [], []
    for item in contents.loose:
        fate = "kept" if item.raw in needed else "young" if item.time >= before else "going"
        amounts[fate] += Amount(1, item.size)
        if fate == "going":
            loose.append(item.raw)
    for pack in contents.packs:
        if pack.objects is None:
            unreadable.append(pack.name)
            continue
        live, rest = _weigh(pack, needed)
        amounts["kept"] += live
        if pack.time >= before:
            amounts["young"] += rest
        elif not live.objects:
            dead.append(pack.name)
            amounts["going"] += Amount(rest.objects, pack.size)
        elif live.size < _SPARSE * (live.size + rest.size):
            sparse.append(pack.name)
            amounts["going"] += rest
        else:
            amounts["staying"] += rest
    gone = tuple(run.key for run in contents.runs if run.key not in runs)
    return Plan(
        **amounts,
        loose=tuple(loose),
        dead=tuple(dead),
        sparse=tuple(sparse),
        unreadable=tuple(unreadable),
        runs=gone,
    )


def _weigh(pack: Packed, needed: Collection[bytes]) -> tuple[Amount, Amount]:
    """Return how much of a pack is needed, and how much is not."""
    objects = live = size = live_size = 0
    for raw, stored in pack.objects or ():
        objects += 1
        size += stored
        if raw in needed:
            live += 1
            live_size += stored
    return Amount(live, live_size), Amount(objects - live, size - live_size)


def collect(
    project: Project,
    *,
    now: float,
    grace: float | None = None,
    dry_run: bool = False,
    agree: Callable[[Collected], bool] = lambda _: True,
    allow_shallow: bool = False,
    salvage: bool = False,
    reporter: Reporter = SILENT,
) -> Collected:
    """Put away what no project needs and is older than `grace` (s; `gc.grace` when None) at the time `now` (s).

    Trash older than that is deleted, but what is needed of it comes back. `agree` is asked once, with what would be
    done; returns what was. Nothing has moved after Inconclusive, RecordError, CorruptObject or OutsideError (somebody
    may need what cannot be read), or LockedError.
    """
    before = now - (project.config.gc_grace if grace is None else grace)
    marker = _marker(project, allow_shallow=allow_shallow, salvage=salvage, reporter=reporter)
    foreseen, _ = _look(project, marker, before, reporter)
    for name in foreseen.plan.unreadable:
        reporter.note(f"pack `{name[:12]}` cannot be read, and stays as it is: `mlx fsck` tells more")
    if not dry_run and foreseen.empty:
        remove_leftovers(project.cache, before)
    if dry_run or foreseen.empty or not agree(foreseen):
        return foreseen
    with _alone(project, "mlx gc"):
        trash = Trash(project.cache, reporter)
        found, files = _look(project, marker, before, reporter)
        if files:
            trash.bring_back(files)
            found = replace(_survey(project, marker, before, reporter)[0], returning=found.returning)
        remove_leftovers(project.cache, before)
        trash.empty(before)  # not what comes now, however short the grace age
        _carry_out(project, found.plan, marker.needed.objects, now, reporter)
        return found


def _marker(project: Project, *, allow_shallow: bool, salvage: bool, reporter: Reporter) -> Marker:
    return Marker(project.cache, project.git, allow_shallow=allow_shallow, salvage=salvage, reporter=reporter)


def _look(project: Project, marker: Marker, before: float, reporter: Reporter) -> tuple[Collected, tuple[str, ...]]:
    """Return what is to be done now, and the files in the trash that are needed after all."""
    project.cache.packs.forget()
    reporter.start("looking for what is needed", None, "files")
    try:
        marker.look()
    except OSError as error:
        raise translate_os_error(error, f"read `{error.filename}`, which may tell what is needed") from error
    return _survey(project, marker, before, reporter)


def _survey(project: Project, marker: Marker, before: float, reporter: Reporter) -> tuple[Collected, tuple[str, ...]]:
    cache, trash = project.cache, Trash(project.cache)
    reporter.start("looking through the cache", None, "files")
    with _translated(project, "read"):
        contents = read_contents(cache, reporter)
        runs = marker.keep_runs(contents.runs, before)
        files = trash.holding(marker.needed.objects)
        returning, thrown = trash.measure(files), trash.thrown()
    back = [each for each in files if int(each.partition("/")[0]) < before]
    expired = _sum(each for each in thrown if each.time < before) - _amount(trash.measure(back))
    plan = plan_collection(contents, marker.needed.objects, runs, before)
    records = dict(marker.needed.records)
    return Collected(plan, marker.projects, records, expired, _sum(thrown), _amount(returning)), files


def _carry_out(project: Project, plan: Plan, needed: Collection[bytes], now: float, reporter: Reporter) -> None:
    trash = Trash(project.cache, reporter)
    reporter.start("putting away", len(plan.runs) + len(plan.dead) + len(plan.sparse) + len(plan.loose), "files")
    trash.throw(int(now), (), (), plan.runs)  # first what names objects
    if plan.dead or plan.sparse:
        with project.cache.packs.replacing(wait=True):
            trash.throw(int(now), (), plan.dead, ())
            for name in trash.thin(int(now), plan.sparse, needed.__contains__):
                reporter.note(f"pack `{name[:12]}` is damaged, and stays as it is: `mlx fsck` tells more")
            trash.reindex()
    trash.throw(int(now), plan.loose, (), ())
    Recipes(project.cache).drop_orphans()


@contextmanager
def _alone(project: Project, doing: str) -> Iterator[None]:
    """Hold the project's cache alone; OSError becomes what a user can act on."""
    with (
        _translated(project, "change"),
        alone(project.cache.root, doing=doing, timeout=project.config.core_lock_timeout),
    ):
        yield


@contextmanager
def _translated(project: Project, verb: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        place = f"`{error.filename}` in " if error.filename else ""
        raise translate_os_error(error, f"{verb} {place}the cache `{project.cache.root}`") from error


def restore_trash(project: Project, *, dry_run: bool = False, reporter: Reporter = SILENT) -> Amount:
    """Bring everything in the trash back into the cache; returns what that is."""
    trash = Trash(project.cache, reporter)
    if dry_run or not project.cache.root.is_dir():
        with _translated(project, "read"):
            return _sum(trash.thrown())
    with _alone(project, "mlx gc --restore"):
        return _amount(trash.restore())


def empty_trash(
    project: Project,
    *,
    dry_run: bool = False,
    agree: Callable[[Emptied], bool] = lambda _: True,
    allow_shallow: bool = False,
    salvage: bool = False,
    reporter: Reporter = SILENT,
) -> Emptied:
    """Delete everything in the trash for good, but for what is needed: that comes back. Returns what that was.

    Nothing has moved after the errors of `collect`.
    """
    with _translated(project, "read"):
        if not Trash(project.cache).thrown():
            return Emptied(Amount(), Amount())
    marker = _marker(project, allow_shallow=allow_shallow, salvage=salvage, reporter=reporter)
    foreseen, _ = _look(project, marker, math.inf, reporter)
    if dry_run or not agree(Emptied(foreseen.expired, foreseen.returning)):
        return Emptied(foreseen.expired, foreseen.returning)
    with _alone(project, "mlx gc --empty-trash"):
        trash = Trash(project.cache, reporter)
        found, files = _look(project, marker, math.inf, reporter)
        trash.bring_back(files)
        trash.empty(math.inf)
        return Emptied(found.expired, found.returning)


def _amount(thrown: Thrown) -> Amount:
    return Amount(thrown.files, thrown.size)


def _sum(thrown: Iterable[Thrown]) -> Amount:
    return sum(map(_amount, thrown), Amount())


def forget_project(project: Project, root: Path, *, dry_run: bool = False) -> None:
    """Collect without regard to the project at `root`, which is gone from disk; UsageError when it is not."""
    clients.forget(project.cache, root, dry_run=dry_run)
