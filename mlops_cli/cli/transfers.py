"""The commands `push`, `pull` and `fetch`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlops_cli.cli.commands import command
from mlops_cli.cli.data import restored_text, tell_failed
from mlops_cli.cli.options import DryRun, Jobs, Json, Overwrite, RemoteName, Targets
from mlops_cli.cli.output import Output
from mlops_cli.cli.session import reporting, session_of
from mlops_cli.cli.text import count, size_text
from mlops_cli.errors import UsageError
from mlops_cli.words import NAMED, naming, so_for, words

if TYPE_CHECKING:
    from mlops_cli.workspace.project import Project
    from mlops_cli.workspace.transfers import Moved, SyncResult

Revisions = Annotated[
    list[str] | None,
    typer.Option("--rev", metavar="REV", help="The data of a Git revision (may be given several times)"),
]
AllBranches = Annotated[bool, typer.Option("--all-branches", help="The data of every local branch")]
AllTags = Annotated[bool, typer.Option("--all-tags", help="The data of every tag")]


@contextmanager
def _meaning_paths(verb: str, project: Project, paths: Sequence[str] | None) -> Iterator[None]:
    """Tell who gave the name of a remote in place of a path how a remote is named."""
    try:
        yield
    except UsageError as error:
        for path in paths or ():
            if path in project.config.remotes and error.message == f"nothing tracks `{path}`":
                raise UsageError(f"{error.message}: it is a remote", hint=f"`mlx {verb} --remote {path}`") from error
        raise


def push(
    context: typer.Context,
    paths: Targets = None,
    revisions: Revisions = None,
    branches: AllBranches = False,
    tags: AllTags = False,
    verify: Annotated[bool, typer.Option("--verify", help="Look whether what the index names is there")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Read what is there, and send again what is gone or damaged")
    ] = False,
    run_cache: Annotated[
        bool | None,
        typer.Option(
            "--run-cache/--no-run-cache",
            show_default=False,
            help="Send all results that the run cache has, or none (default: those of the locks)",
        ),
    ] = None,
    remote: RemoteName = None,
    jobs: Jobs = 0,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Upload the data that the records name

    Only what the remote lacks goes up. Without a path, that is all that the pointers and locks of the workspace name,
    or of the revisions that are named instead of it. What it lacks, its index tells: `--verify` and `--repair` do not
    take its word for it. With the outputs of stages go their run records, by which `mlx run --pull` restores them
    elsewhere.
    """
    from mlops_cli.workspace.pushing import push as push_data
    from mlops_cli.workspace.transfers import Pushing, Runs, Trust
    from mlops_cli.workspace.versions import Versions

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    targets = session.targets(project, paths)
    versions = Versions(tuple(revisions or ()), branches, tags)
    trust = Trust.NOTHING if repair else Trust.FILES if verify else Trust.INDEX
    runs = Runs.CURRENT if run_cache is None else Runs.ALL if run_cache else Runs.NONE
    with reporting(output) as reporter, _meaning_paths("push", project, paths):
        result = push_data(project, targets, Pushing(versions, remote, jobs, dry_run, trust, reporter, runs))
    verb = "would push" if dry_run else "pushed"
    _show(output, "push", result, verb, "to", dry_run=dry_run)
    for line in (line for each in result.remotes for line in each.remedies):
        output.say(f"next: {line}")


def fetch(
    context: typer.Context,
    paths: Targets = None,
    revisions: Revisions = None,
    branches: AllBranches = False,
    tags: AllTags = False,
    remote: RemoteName = None,
    jobs: Jobs = 0,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Download data into the cache, not into the workspace

    Without a path, that is all that the records of the workspace name, or of the revisions that are named instead. What
    was imported and is on no remote comes from its source, if that still has it.
    """
    from mlops_cli.workspace.extents import find_in_part
    from mlops_cli.workspace.fetching import fetch as fetch_data
    from mlops_cli.workspace.transfers import Fetching
    from mlops_cli.workspace.versions import Versions

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    targets = session.targets(project, paths)
    versions = Versions(tuple(revisions or ()), branches, tags)
    with reporting(output) as reporter, _meaning_paths("fetch", project, paths):
        result = fetch_data(project, targets, Fetching(versions, remote, jobs, dry_run, reporter))
    _show(output, "fetch", result, "would fetch" if dry_run else "fetched", "from", dry_run=dry_run)
    if result.objects and not dry_run:
        # Without a path, what is away of a folder that is here in part stays away.
        named = list(targets or result.paths) if find_in_part(project).keys() & {*result.paths} else []
        line = f"mlx checkout {words(named[:NAMED])}".rstrip()
        output.say(f"next: `{line}` puts it into the workspace{so_for(named[NAMED:])}")


def pull(
    context: typer.Context,
    paths: Targets = None,
    remote: RemoteName = None,
    jobs: Jobs = 0,
    force: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Download data and put it into the workspace

    It is `mlx fetch`, then `mlx checkout`. Without a path, that is all that the records name, also of folders that are
    here in part; what cannot be had is named, the rest is brought, and it exits with 4.
    """
    from mlops_cli.pipeline.turn import exclusive
    from mlops_cli.workspace.pulling import pull as pull_data
    from mlops_cli.workspace.shortfalls import not_brought
    from mlops_cli.workspace.snapshot import workspace_snapshot
    from mlops_cli.workspace.transfers import Fetching

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    targets = session.targets(project, paths)
    with (
        reporting(output) as reporter,
        _meaning_paths("pull", project, paths),
        exclusive(project, "mlx pull", reporter, dry_run=dry_run),
    ):
        how = Fetching(remote=remote, jobs=jobs, dry_run=dry_run, reporter=reporter)
        result, changed, failed = pull_data(project, targets, how, force=force)
    restored = [asdict(item) for item in changed]
    lines = restored_text(changed, dry_run=dry_run) if changed or not failed else []
    tell_failed(output, failed)
    verb = "would fetch" if dry_run else "fetched"
    _show(output, "pull", result, verb, "from", dry_run=dry_run, restored=restored, lines=lines, complete=not failed)
    if failed:
        raise not_brought(failed, workspace_snapshot(project).tracked())


def _show(
    output: Output,
    kind: str,
    result: SyncResult,
    verb: str,
    way: str,
    *,
    dry_run: bool,
    restored: list[dict[str, Any]] | None = None,
    lines: Sequence[str] = (),
    complete: bool = True,
) -> None:
    value = {
        "dry_run": dry_run,
        "remote": result.remote,
        "url": result.url,
        "paths": result.paths,
        **{name: getattr(result, name) for name in _COUNTED[kind]},
        "remotes": [
            {name: getattr(each, name) for name in ("name", "url", "paths", *_COUNTED[kind])} for each in result.remotes
        ],
        "left": result.left,
    }
    if kind != "push":
        value["unlisted"] = result.unlisted._asdict()
    if restored is not None:
        value["restored"] = restored
    moved = [
        _moved_text(kind, each, verb, way, dry_run=dry_run) for each in result.remotes if each.objects or each.runs
    ]
    sent = sum(each.repaired for each in result.remotes if each.objects)
    if sent:
        being = ("is", "was") if sent == 1 else ("are", "were")
        lines = [*lines, f"{count(sent, 'object')} of these {being[not dry_run]} gone or damaged"]
    forgotten = result.repaired - sent
    if forgotten:  # of a cache behind a URL, to which nothing can be sent again
        forgets = "would forget" if dry_run else "forgot"
        lines = [*lines, f"the index of the cache {forgets} {count(forgotten, 'object')}: gone or damaged there"]
    elif not moved and complete:
        moved = [_nothing_text(kind, result)]
    if result.left:
        output.note(f"left out, for the `paths` of the remotes say another one: {naming(result.left)}")
    output.result(kind, value, [*moved, *lines])


_TOLD = ("objects", "size", "requests", "transferred")
_COUNTED = {"push": (*_TOLD, "repaired", "runs"), "fetch": _TOLD, "pull": _TOLD}


def _moved_text(kind: str, moved: Moved, verb: str, way: str, *, dry_run: bool) -> str:
    """Word what went to or came from one remote."""
    size = size_text(moved.known if moved.size is None else moved.size)
    if moved.size and not dry_run and moved.transferred < moved.size // 2:
        size += f", {size_text(moved.transferred)} transferred"
    runs = f"{count(moved.runs, 'run record')}" if moved.runs else ""
    if not moved.objects:
        return f"{verb} {runs} {way} `{moved.name}`"
    text = f"{verb} {count(moved.objects, 'object')} ({size}){runs and f' and {runs}'} {way} `{moved.name}`"
    if moved.unlisted.listings:
        _, files, below = moved.unlisted
        text = f"{verb} at least {count(moved.objects, 'object')} ({size}) {way} `{moved.name}`"
        text += f", and up to {count(files, 'file')} ({size_text(below)}) that listings among them name"
    return text


def _nothing_text(kind: str, result: SyncResult) -> str:
    what = "all that is here" if result.unread else "it all"
    if kind != "push":
        return f"nothing to fetch: the cache has {what}"
    if any(each.remedies for each in result.remotes):
        return "nothing to forget: the index of the cache names nothing that is gone or damaged"
    names = [f"`{each.name}`" for each in result.remotes]
    return f"nothing to push: {' and '.join(names)} {'has' if len(names) == 1 else 'have'} {what}"


COMMANDS = {
    "push": command(push, "mlx push", "mlx push data/raw --remote storage", "mlx push --all-branches --all-tags"),
    "pull": command(pull, "mlx pull", "mlx pull data/raw/0007.pgm"),
    "fetch": command(fetch, "mlx fetch data/raw", "mlx fetch --rev HEAD~1"),
}
