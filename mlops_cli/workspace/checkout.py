"""`mlx checkout`: make the workspace match what the records name.

First everything is decided: which files to write and delete, whether the cache holds what is wanted, whether some
store holds what would be lost, and whether something that nothing tracks is in the way. Only then is the workspace
touched, file by file, each replaced by an atomic rename, with every folder on the way opened without following links.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field

from mlops_cli.errors import CorruptObject, MissingObject, MlxError
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.records.pointers import ObjectKind
from mlops_cli.store.cache import Cache
from mlops_cli.store.objects import AbsentObjects, DamagedObjects
from mlops_cli.store.trees import EMPTY_TREE, Change, Entry, Kind, TreeSource, check_folder, check_links, diff
from mlops_cli.words import NAMED, naming, so_for, words
from mlops_cli.workspace import git
from mlops_cli.workspace.cache_repair import cache_lost
from mlops_cli.workspace.compare import as_entry, same
from mlops_cli.workspace.extents import (
    NO_EXTENTS,
    Extents,
    after_bringing,
    after_failing,
    before_bringing,
    extent_of,
    find_kept_in_part,
    see,
)
from mlops_cli.workspace.hazards import Edited, refuse_folded, refuse_harm
from mlops_cli.workspace.litter import beside, remove_seen
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.reach import bring_listings, damaged_at, find_part, not_cached, reach
from mlops_cli.workspace.reservations import leave_in_use
from mlops_cli.workspace.scan import Scanner, is_stored, open_scanner
from mlops_cli.workspace.snapshot import Tracked, select, workspace_snapshot
from mlops_cli.workspace.writing import apply_changes

_SAME_AGAIN = "run the same command again: it stores what is there before it replaces it"


@dataclass(frozen=True, slots=True)
class Restored:
    """What bringing one tracked path up to date takes: numbers of files (links and empty folders count).

    All three are zero when only a listing that is not here could tell.
    """

    path: str
    added: int
    modified: int
    deleted: int


@dataclass(frozen=True, slots=True)
class CheckoutResult:
    """The paths that differed, empty when the workspace already matched, and what kept others from being brought."""

    restored: tuple[Restored, ...]
    failed: Mapping[str, MlxError] = field(default_factory=dict)


def checkout(
    project: Project,
    targets: Sequence[str] = (),
    *,
    force: bool = False,
    dry_run: bool = False,
    partly: bool = False,
    whole: bool = False,
    reporter: Reporter = SILENT,
) -> CheckoutResult:
    """Make `targets` (project paths; none: everything tracked) match their records.

    Without targets, of a folder that is here in part what is away stays away, unless `whole`.

    UsageError when a file would be overwritten or deleted whose bytes no store holds, unless `force`, or when something
    that mlx leaves alone is in the way; MissingObject when the cache lacks wanted bytes. Nothing is touched in any of
    these cases. UsageError, too, at a file that changes while the others are written: it stays, unless `force`.
    LockedError for what a stage uses that is being run; without targets, that is left as it is.

    With `partly`, a tracked path of which the cache lacks something, or has a damaged listing, is left as it is and
    told in the result, and the others are brought.
    """
    chosen = leave_in_use(project, _chosen(project, targets), targets, reporter)
    extents = {} if targets or whole else find_kept_in_part(project)
    if in_part := [entry.path for entry, _ in chosen if extent_of(extents, entry)]:
        line = f"mlx {'pull' if project.config.remotes else 'checkout'} {words(in_part[:NAMED])}"
        stay = "stays" if len(in_part) == 1 else "stay"
        reporter.note(f"{naming(in_part)} {stay} here in part: `{line}` brings the rest{so_for(in_part[NAMED:])}")
    return bring(project, chosen, extents, force=force, dry_run=dry_run, partly=partly, reporter=reporter)


def bring(
    project: Project,
    chosen: Sequence[tuple[Tracked, str]],
    extents: Extents = NO_EXTENTS,
    *,
    force: bool = False,
    dry_run: bool = False,
    partly: bool = False,
    reporter: Reporter = SILENT,
) -> CheckoutResult:
    """Do what `checkout` does for tracked paths, or parts of them, that the caller knows.

    What is away by `extents` stays away.
    """
    with open_scanner(project, reporter=reporter) as scanner, _naming_lost(project, chosen):
        reporter.start("checking", None, "files")
        with suppress(AbsentObjects) if partly else nullcontext():
            bring_listings(
                project.cache, [entry.digest for entry, part in chosen if entry.kind is ObjectKind.TREE and not part]
            )
        plans: list[tuple[Tracked, list[Change]]] = []
        failed: dict[str, MlxError] = {}
        for entry, part in chosen:
            try:
                plan = _plan(project.cache, scanner, entry, part, extents)
                _refuse_absent(project.cache, entry, plan)
            except (MissingObject, CorruptObject) as error:
                if not partly:
                    raise
                failed[entry.path] = error
            else:
                plans.append((entry, plan))
        changes = [change for _, plan in plans for change in plan]
        refuse_harm(project, plans, force=force)
        if not dry_run:
            remove_seen(project, {*scanner.litter, *beside(project, [entry.path for entry, _ in chosen])})
            reporter.start("checking out", len(changes), "files")
            came = [pair for pair in chosen if pair[0].path not in failed and pair[0].path not in extents]
            before_bringing(project, scanner, came)
            try:
                apply_changes(project, scanner, changes, reporter, spare=not force)
            except MlxError:
                after_failing(project, scanner, came)
                raise
            after_bringing(project, came)
    return CheckoutResult(tuple(_summary(entry, plan) for entry, plan in plans if plan), failed)


@contextmanager
def _naming_lost(project: Project, chosen: Sequence[tuple[Tracked, str]]) -> Iterator[None]:
    """Name the tracked paths in errors about what the index of a cache behind a URL names, and is not there."""
    try:
        yield
    except (AbsentObjects, DamagedObjects) as error:
        if project.cache.url is None:
            raise
        owners = reach(project.cache.window, chosen).owners
        paths = {owners[digest] for digest in error.digests if digest in owners}
        raise cache_lost(sorted(paths or {entry.path for entry, _ in chosen}), error) from error


def foresee(
    project: Project, targets: Sequence[str] = (), *, force: bool = False, reporter: Reporter = SILENT
) -> CheckoutResult:
    """Return what `checkout` would do once the cache has everything, as after a fetch; touches nothing.

    It refuses what `checkout` would refuse, as far as that can be known before the fetch.
    """
    plans: list[tuple[Tracked, list[Change]]] = []
    found: list[Restored] = []
    with open_scanner(project, reporter=reporter) as scanner:
        reporter.start("checking", None, "files")
        for entry, part in _chosen(project, targets):
            try:
                plan = _plan(project.cache, scanner, entry, part)
            except MissingObject:
                found.append(_guess(scanner, entry, part))
                continue
            if plan:
                plans.append((entry, plan))
                found.append(_summary(entry, plan))
        refuse_harm(project, plans, force=force)
    return CheckoutResult(tuple(found))


def _guess(scanner: Scanner, tracked: Tracked, part: str) -> Restored:
    """Return what the record alone says of bringing a folder back whose listing is not here."""
    if part or scanner.look(tracked.path) is not None:
        return Restored(tracked.path, 0, 0, 0)
    return Restored(tracked.path, max(tracked.files, 1), 0, 0)


def _chosen(project: Project, targets: Sequence[str]) -> list[tuple[Tracked, str]]:
    """Return what `targets` mean; an output that remotes never get, and that is not here, only when it is named."""
    tracked = [entry for entry in workspace_snapshot(project).tracked() if not entry.git]
    return [
        (entry, part)
        for entry, part in select(tracked, targets)
        if entry.push or part or entry.path in targets or is_stored(project.cache, as_entry(entry))
    ]


def restore(
    project: Project,
    scanner: Scanner,
    wanted: Mapping[str, Entry | None],
    reporter: Reporter = SILENT,
    *,
    kept: Mapping[str, Entry | None] | None = None,
) -> None:
    """Make every path be exactly what is `wanted` there (nothing, when None), whatever is there now.

    The caller has made sure of that; with `kept`, of what it names at each path alone: Edited at anything else, which
    stays. UsageError, before anything is touched, for names that the file system takes for the same. What Git does not
    ignore is never linked: Git would commit a link into this machine's cache.
    """
    plans: dict[str, list[Change]] = {}
    bring_listings(project.cache, [entry.digest for entry in wanted.values() if entry and entry.kind == Kind.FOLDER])
    for path, entry in wanted.items():
        present = scanner.look(path)
        is_something = present is not None and present.digest != EMPTY_TREE
        if kept is not None and is_something and not is_part(scanner, present, kept.get(path)):
            raise Edited(path, hint=_SAME_AGAIN)
        plans[path] = _between(project.cache, scanner, path, present, entry)
    refuse_folded(project, (change for plan in plans.values() for change in plan))
    for path, plan in plans.items():
        cache = project.cache
        if wanted[path] is not None and cache.shares and not git.ignored_files(project.root, [path]):
            cache = cache.copying()
        try:
            apply_changes(project, scanner, plan, reporter, cache=cache, spare=kept is not None)
        except Edited as error:
            raise Edited(error.path, hint=_SAME_AGAIN) from error


def is_part(trees: TreeSource, present: Entry | None, old: Entry | None) -> bool:
    """Say whether `old` has all that is present: nothing, the whole of it, or some of its files."""
    if present is None or old is None:
        return present is None
    if present.kind == Kind.FOLDER == old.kind:
        try:
            found = diff(trees, old.digest, present.digest)
        except MissingObject:  # nobody can tell
            return False
        return not (found.added or found.modified)
    return (present.kind, present.digest) == (old.kind, old.digest)


def _plan(cache: Cache, scanner: Scanner, tracked: Tracked, part: str, extents: Extents = NO_EXTENTS) -> list[Change]:
    if not part:
        present = scanner.look(tracked.path)
        present = see(scanner, extents, tracked, "", present).entry
        if present is not None and same(tracked, present):
            return []
        return _between(cache, scanner, tracked.path, present, as_entry(tracked))
    try:
        wanted = find_part(scanner, tracked, part)
    except MissingObject as error:
        raise not_cached(tracked.path, 1) from error
    path = f"{tracked.path}/{part}"
    return _between(cache, scanner, path, scanner.look(path), wanted)


def _between(cache: Cache, scanner: Scanner, path: str, present: Entry | None, wanted: Entry | None) -> list[Change]:
    """Return the changes, with project paths, that turn `present` into `wanted`."""
    place = os.fsencode(path)
    old_tree, new_tree = (e.digest if e and e.kind == Kind.FOLDER else None for e in (present, wanted))
    changes: list[Change] = []
    if old_tree != new_tree:
        if new_tree and cache.missing([new_tree]):
            raise not_cached(path, 1)
        try:
            if wanted is not None and new_tree:
                check_folder(scanner, wanted)
            found = diff(scanner, old_tree, new_tree, place + b"/")
        except MissingObject as error:
            raise not_cached(path, 1) from error
        except CorruptObject as error:
            raise damaged_at(path, error) from error
        changes = [*found.deleted, *found.modified, *found.added]
        if wanted is not None and new_tree and not (wanted.files or found.added or found.modified):
            changes.append(Change(place, None, wanted))  # a folder that is to be there, empty
        if present is not None and old_tree and not (new_tree or changes):
            changes.append(Change(place, present, None))  # a folder that was there, empty
    old_file, new_file = (None if e is None or e.kind == Kind.FOLDER else e for e in (present, wanted))
    if (old_file and (old_file.kind, old_file.digest)) != (new_file and (new_file.kind, new_file.digest)):
        lone = Change(place, old_file, new_file)
        changes = [lone, *changes] if new_file is None else [*changes, lone]
    check_links(scanner, (change.new for change in changes))
    return changes


def _refuse_absent(cache: Cache, tracked: Tracked, plan: list[Change]) -> None:
    wanted = {c.new.digest for c in plan if c.new is not None and c.new.kind != Kind.FOLDER}
    missing = cache.missing(wanted)
    if missing:
        raise not_cached(tracked.path, len(missing))


def _summary(tracked: Tracked, plan: list[Change]) -> Restored:
    added = sum(change.old is None for change in plan)
    deleted = sum(change.new is None for change in plan)
    return Restored(tracked.path, added, len(plan) - added - deleted, deleted)
