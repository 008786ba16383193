"""`mlx gc`: put away what no project needs, in three steps.

Look: which objects must stay (`roots`) and what is there. Plan: a pure function of the two. Do: with the guard held
alone, look again, plan again, and move what is to go into the trash, where it stays for the grace age. Whatever kills
this in between, nothing that is needed has moved, and doing it again does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlops_cli.files import translate_os_error
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.contents import Contents, Packed, read_contents
from mlops_cli.store.guard import alone
from mlops_cli.store.trash import Trash
from mlops_cli.workspace import clients
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.roots import Marker, Source

GRACE = 14 * 24 * 3600.0  # seconds
_SPARSE = 0.5  # a pack is written anew when less of it than this is needed


@dataclass(frozen=True, slots=True)
class Amount:
    """So many objects, and the bytes they take in the cache."""

    objects: int = 0
    size: int = 0

    def __add__(self, other: Amount) -> Amount:
        """Return both together."""
        return Amount(self.objects + other.objects, self.size + other.size)


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
        """Whether there is nothing to do."""
        return not (self.loose or self.dead or self.sparse or self.runs)


@dataclass(frozen=True, slots=True)
class Collected:
    """A plan, what it was made from, and what is in the trash besides: `expired` is deleted, `thrown` stays."""

    plan: Plan
    projects: tuple[str, ...]
    records: dict[Source, int]
    expired: Amount
    thrown: Amount


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
    grace: float = GRACE,
    dry_run: bool = False,
    agree: Callable[[Collected], bool] = lambda _: True,
    allow_shallow: bool = False,
    salvage: bool = False,
    reporter: Reporter = SILENT,
) -> Collected:
    """Put away what no project needs and is older than `grace` (s) at the time `now`; returns what was done.

    Trash older than `grace` is deleted. `agree` is asked once, with what would be done. Nothing has moved after
    Inconclusive, RecordError, CorruptObject or OutsideError (somebody may need what cannot be read), or LockedError.
    """
    before = now - grace
    reporter.start("looking for what is needed", None, "files")
    marker = Marker(
        project.cache,
        project.git.common_dir,
        project.git.top,
        allow_shallow=allow_shallow,
        salvage=salvage,
        reporter=reporter,
    )
    foreseen = _look(project, marker, before)
    for name in foreseen.plan.unreadable:
        reporter.note(f"pack `{name[:12]}` cannot be read, and stays as it is: `mlx fsck` tells more")
    if dry_run or (foreseen.plan.empty and not foreseen.expired.objects) or not agree(foreseen):
        return foreseen
    with _alone(project, "mlx gc"):
        found = _look(project, marker, before)
        Trash(project.cache).empty(before)  # not what comes now, however short the grace age
        _carry_out(project, found.plan, marker.needed.objects, now, reporter)
        return found


def _look(project: Project, marker: Marker, before: float) -> Collected:
    cache = project.cache
    cache.packs.forget()
    try:
        marker.look()
        contents = read_contents(cache)
        runs = marker.keep_runs(contents.runs, before)
        thrown = Trash(cache).thrown()
    except OSError as error:
        raise translate_os_error(error, f"look through the cache `{cache.root}`") from error
    expired = [each for each in thrown if each.time < before]
    return Collected(
        plan_collection(contents, marker.needed.objects, runs, before),
        marker.projects,
        dict(marker.needed.records),
        Amount(sum(each.files for each in expired), sum(each.size for each in expired)),
        Amount(sum(each.files for each in thrown), sum(each.size for each in thrown)),
    )


def _carry_out(project: Project, plan: Plan, needed: Collection[bytes], now: float, reporter: Reporter) -> None:
    trash = Trash(project.cache)
    trash.throw(int(now), (), (), plan.runs)  # first what names objects
    if plan.dead or plan.sparse:
        with project.cache.packs.replacing(wait=True):
            trash.throw(int(now), (), plan.dead, ())
            for name in trash.thin(int(now), plan.sparse, needed.__contains__):
                reporter.note(f"pack `{name[:12]}` is damaged, and stays as it is: `mlx fsck` tells more")
            trash.reindex()
    trash.throw(int(now), plan.loose, (), ())


@contextmanager
def _alone(project: Project, doing: str) -> Iterator[None]:
    """Hold the project's cache alone; OSError becomes what a user can act on."""
    cache = project.cache
    try:
        with alone(cache.root, doing=doing, timeout=project.config.core_lock_timeout):
            yield
    except OSError as error:
        raise translate_os_error(error, f"clear the cache `{cache.root}`") from error


def restore_trash(project: Project, *, dry_run: bool = False) -> Amount:
    """Bring everything in the trash back into the cache; returns what that is."""
    return _on_trash(project, "mlx gc --restore", Trash.restore, dry_run=dry_run)


def empty_trash(project: Project, *, dry_run: bool = False, agree: Callable[[Amount], bool] = lambda _: True) -> Amount:
    """Delete everything in the trash for good; returns what that was."""

    def delete(trash: Trash) -> object:
        return trash.empty(float("inf"))

    found = _on_trash(project, "", delete, dry_run=True)
    if dry_run or not found.objects or not agree(found):
        return found
    return _on_trash(project, "mlx gc --empty-trash", delete, dry_run=False)


def _on_trash(project: Project, doing: str, verb: Callable[[Trash], object], *, dry_run: bool) -> Amount:
    trash = Trash(project.cache)
    if not project.cache.root.is_dir():
        return Amount()
    if dry_run:
        return _sum(trash)
    with _alone(project, doing):
        found = _sum(trash)
        verb(trash)
    return found


def _sum(trash: Trash) -> Amount:
    thrown = trash.thrown()
    return Amount(sum(each.files for each in thrown), sum(each.size for each in thrown))


def forget_project(project: Project, root: Path, *, dry_run: bool = False) -> None:
    """Collect without regard to the project at `root`, which is gone from disk; UsageError when it is not."""
    clients.forget(project.cache, root, dry_run=dry_run)
