"""`mlx fetch` and `pull` as a whole: from a remote, and imports from their sources where no remote has them.

A source is asked only when it is on another machine, and believed only when it still has the version that the record
names; what comes must have the record's digest, or it is not kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mlops_cli.errors import CorruptObject, MissingObject, MlxError
from mlops_cli.progress import Reporter
from mlops_cli.records.pointers import ObjectKind
from mlops_cli.records.sources import RepoSource, UrlSource
from mlops_cli.store.batches import open_batch
from mlops_cli.store.objects import AbsentObjects, DamagedObjects
from mlops_cli.store.place import Place
from mlops_cli.words import quoted, word
from mlops_cli.workspace.bringing import fetch_objects
from mlops_cli.workspace.compare import as_entry
from mlops_cli.workspace.destinations import Destinations
from mlops_cli.workspace.origins import OpenedUrl, RepoOrigin
from mlops_cli.workspace.pinned import is_pinned
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.project_remote import open_project_remote
from mlops_cli.workspace.reach import measure_unread, reach
from mlops_cli.workspace.remotes import choose_remote, default_remote, is_cache
from mlops_cli.workspace.scan import is_stored
from mlops_cli.workspace.shortfalls import Failed, damaged_on_the_way, refuse_gone, unfetchable
from mlops_cli.workspace.snapshot import Tracked, select, workspace_snapshot
from mlops_cli.workspace.transfers import PLAINLY, Fetching, Moved, SyncResult, paths_of
from mlops_cli.workspace.versions import THE_WORKSPACE, select_versions


def fetch(project: Project, targets: Sequence[str] = (), how: Fetching = PLAINLY) -> SyncResult:
    """Bring what the records of `targets` name, in each of the versions, and the cache lacks from the remotes.

    From which remote each tracked path comes, `Destinations` says, unless `how` names one. Where it does not, imports
    that no remote has come from their sources.
    MissingObject when nobody holds it. A dry run downloads nothing: below a folder whose tree is not here it cannot
    count objects, and `size` is None; `unlisted` tells the files there.
    """
    if how.remote is not None or how.dry_run or how.versions != THE_WORKSPACE:
        return _fetch_from_remotes(project, targets, how)
    if default_remote(project) is None:
        _bring_imports(project, targets, how.jobs, how.reporter)
        return _fetch_from_remotes(project, targets, how)
    try:
        return _fetch_from_remotes(project, targets, how)
    except MissingObject:
        if not _bring_imports(project, targets, how.jobs, how.reporter):
            raise
    return _fetch_from_remotes(project, targets, how)


def _fetch_from_remotes(project: Project, targets: Sequence[str], how: Fetching) -> SyncResult:
    chosen = _fetchable(select_versions(project, targets, how.versions), targets)
    needed = reach(project.cache, chosen)
    if not needed.unread and not project.cache.missing(needed.sizes):
        name = choose_remote(project, how.remote) if how.remote or default_remote(project) else ""
        url = project.config.remotes[name].url if name else ""
        return SyncResult((Moved(name, url, paths_of(chosen)),))
    division = Destinations(project).divide(chosen, how.remote, targets, sending=False)
    moved = [_fetch_share(project, name, share, how) for name, share in division.shares.items()]
    return SyncResult(tuple(moved), division.left)


def _fetch_share(project: Project, name: str, share: Sequence[tuple[Tracked, str]], how: Fetching) -> Moved:
    """Bring what the cache lacks of a share of the tracked paths from one remote; MissingObject, CorruptObject."""
    needed = reach(project.cache, share)
    lacking = project.cache.missing(needed.sizes)
    url = project.config.remotes[name].url
    if not lacking and not needed.unread:
        return Moved(name, url, paths_of(share))
    _, store = open_project_remote(project, name, how.reporter)
    if how.dry_run:
        known = sum(needed.sizes[digest] for digest in lacking)
        unlisted = measure_unread(project.cache, share, needed)
        size = None if needed.unread else known
        objects = len(lacking) + len(needed.unread)
        return Moved(name, url, paths_of(share), objects, size, unlisted=unlisted, known=known)
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
    return Moved(name, url, paths_of(share), done.objects, done.bytes, traffic.requests, moved)


def _fetchable(chosen: Iterable[tuple[Tracked, str]], targets: Sequence[str]) -> tuple[tuple[Tracked, str], ...]:
    """Return what of `chosen` a remote can have; outputs that are kept from them only where they are asked for by name.

    What Git keeps comes with Git.
    """
    data = ((entry, part) for entry, part in chosen if not entry.git)
    return tuple((entry, part) for entry, part in data if entry.push or entry.path in targets or part)


def fetch_the_rest(project: Project, how: Fetching) -> tuple[SyncResult, Failed]:
    """Bring, after a `fetch` of everything failed, what can be had: each tracked path by itself.

    What came by then stays where it is and is not counted. Returned, too, is what keeps each of the others away.
    """
    chosen = _fetchable(select_versions(project, (), how.versions), ())
    division = Destinations(project).divide(chosen, how.remote, sending=False)
    moved: list[Moved] = []
    failed: dict[str, MlxError] = {}
    for name, share in division.shares.items():
        came = Moved(name, project.config.remotes[name].url, ())
        for pair in share:
            try:
                came = came.plus(_fetch_share(project, name, [pair], how))
            except (MissingObject, CorruptObject) as error:
                failed[pair[0].path] = error
        moved.append(came)
    return SyncResult(tuple(moved), division.left), failed


def _bring_imports(project: Project, targets: Sequence[str], jobs: int, reporter: Reporter) -> int:
    """Bring imports that the cache lacks from their sources; return how many came. What goes wrong is a note."""
    came = 0
    with project.guard.held():
        for tracked, part in _lacking(project, targets, reporter):
            assert tracked.source is not None
            try:
                if isinstance(tracked.source, UrlSource):
                    _bring_from_url(project, tracked, tracked.source, jobs, reporter)
                else:
                    _bring_from_repository(project, tracked, part, tracked.source, jobs, reporter)
            except MlxError as error:
                reporter.note(f"`{tracked.path}` does not come from its source: {error.message}")
                continue
            came += 1
            reporter.note(f"`{tracked.path}` came from its source, `{tracked.source.place}`")
    return came


def _lacking(project: Project, targets: Sequence[str], reporter: Reporter) -> Iterator[tuple[Tracked, str]]:
    for tracked, part in select(workspace_snapshot(project).tracked(), targets):
        source = tracked.source
        if source is None or not is_pinned(tracked) or is_stored(project.cache, as_entry(tracked)):
            continue
        if source.is_remote:
            yield tracked, part
        else:
            reporter.note(
                f"`{tracked.path}` is from this machine (`{source.place}`), where no pull looks: "
                f"`{_importing(tracked, source)}` brings it"
            )


def _importing(tracked: Tracked, source: UrlSource | RepoSource) -> str:
    """Return the command that imports a tracked path anew."""
    if isinstance(source, UrlSource):
        return f"mlx import {quoted(source.url)} {word(tracked.path)}"
    named = f"mlx import {quoted(source.repo)} {quoted(source.path)} {word(tracked.path)}"
    options = (("--rev", source.rev), ("--remote", source.remote))
    return " ".join([named, *(f"{option} {quoted(value)}" for option, value in options if value is not None)])


def _bring_from_url(project: Project, tracked: Tracked, source: UrlSource, jobs: int, reporter: Reporter) -> None:
    place = Place(source.url)
    contents = place.look()
    is_folder = tracked.kind is ObjectKind.TREE
    same = source.etag in (None, contents.version) and contents.size in (None, tracked.size)
    if not same or contents.is_folder != is_folder:
        raise MissingObject(f"`{source.url}` has another version now")
    if not is_folder:  # so that no more comes, when the place does not tell how much there is
        contents = contents._replace(items=(contents.items[0]._replace(size=tracked.size),))
    with open_batch(project.cache) as batch:
        entry = OpenedUrl(source.url, place, contents).fetch_into(batch, jobs, reporter)
        if entry.digest != tracked.digest:
            raise CorruptObject(f"`{source.url}` has other bytes now than the record says")


def _bring_from_repository(
    project: Project, tracked: Tracked, part: str, source: RepoSource, jobs: int, reporter: Reporter
) -> None:
    path = f"{source.path}/{part}" if part else source.path
    with RepoOrigin(source.repo, path, source.commit, source.remote).open(project.local) as opened:
        entry = opened.pinned()
        if entry is not None and not part and entry.digest != tracked.digest:
            raise CorruptObject(f"`{source.repo}` has other data at {source.commit[:10]} than the record says")
        opened.fetch(project.cache, jobs, reporter)
