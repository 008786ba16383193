"""`mlx fetch` and `pull` as a whole: from a remote, and imports from their sources where no remote has them.

A source is asked only when it is on another machine, and believed only when it still has the version that the record
names; what comes must have the record's digest, or it is not kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mlops_cli.errors import CorruptObject, MissingObject, MlxError
from mlops_cli.progress import Reporter
from mlops_cli.records.pointers import ObjectKind
from mlops_cli.records.sources import RepoSource, UrlSource
from mlops_cli.store.batches import open_batch
from mlops_cli.store.place import Place
from mlops_cli.words import quoted, word
from mlops_cli.workspace.compare import as_entry
from mlops_cli.workspace.destinations import Destinations
from mlops_cli.workspace.origins import OpenedUrl, RepoOrigin
from mlops_cli.workspace.pinned import is_pinned
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.remotes import default_remote
from mlops_cli.workspace.scan import is_stored
from mlops_cli.workspace.shortfalls import Failed
from mlops_cli.workspace.snapshot import Tracked, select, workspace_snapshot
from mlops_cli.workspace.sync import fetch as fetch_from_remote
from mlops_cli.workspace.sync import fetch_share, fetchable
from mlops_cli.workspace.transfers import PLAINLY, Fetching, Moved, SyncResult
from mlops_cli.workspace.versions import THE_WORKSPACE, select_versions


def fetch(project: Project, targets: Sequence[str] = (), how: Fetching = PLAINLY) -> SyncResult:
    """Do what `sync.fetch` does; where no remote is named and imports are lacking, their sources are asked too."""
    if how.remote is not None or how.dry_run or how.versions != THE_WORKSPACE:
        return fetch_from_remote(project, targets, how)
    if default_remote(project) is None:
        _bring_imports(project, targets, how.jobs, how.reporter)
        return fetch_from_remote(project, targets, how)
    try:
        return fetch_from_remote(project, targets, how)
    except MissingObject:
        if not _bring_imports(project, targets, how.jobs, how.reporter):
            raise
    return fetch_from_remote(project, targets, how)


def fetch_the_rest(project: Project, how: Fetching) -> tuple[SyncResult, Failed]:
    """Bring, after a `fetch` of everything failed, what can be had: each tracked path by itself.

    What came by then stays where it is and is not counted. Returned, too, is what keeps each of the others away.
    """
    chosen = fetchable(select_versions(project, (), how.versions), ())
    division = Destinations(project).divide(chosen, how.remote, sending=False)
    moved: list[Moved] = []
    failed: dict[str, MlxError] = {}
    for name, share in division.shares.items():
        came = Moved(name, project.config.remotes[name].url, ())
        for pair in share:
            try:
                came = came.plus(fetch_share(project, name, [pair], how))
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
